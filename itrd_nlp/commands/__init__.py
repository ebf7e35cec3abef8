"""The commands of ``itrd``, one module each. A new one: its module, and a line in COMMANDS."""

from itrd_nlp.commands.benchmark import BENCHMARK
from itrd_nlp.commands.command import Command
from itrd_nlp.commands.compare import COMPARE
from itrd_nlp.commands.completion import COMPLETION
from itrd_nlp.commands.demo import DEMO
from itrd_nlp.commands.distill import DISTILL
from itrd_nlp.commands.doctor import DOCTOR
from itrd_nlp.commands.evaluate import EVALUATE
from itrd_nlp.commands.export import EXPORT
from itrd_nlp.commands.predict import PREDICT
from itrd_nlp.commands.recipes import RECIPES
from itrd_nlp.commands.report import REPORT
from itrd_nlp.commands.score import SCORE
from itrd_nlp.commands.sweep import SWEEP

COMMANDS = {
    command.name: command
    for command in (
        DISTILL,
        COMPARE,
        SWEEP,
        EVALUATE,
        EXPORT,
        BENCHMARK,
        SCORE,
        PREDICT,
        DEMO,
        REPORT,
        RECIPES,
        DOCTOR,
        COMPLETION,
    )
}

__all__ = ["COMMANDS", "Command"]
