"""The commands of ``itrd``, one module each. A new command needs its module, and a line in COMMANDS."""

from itrd_nlp.cli.commands.benchmark import BENCHMARK
from itrd_nlp.cli.commands.cache import CACHE
from itrd_nlp.cli.commands.compare import COMPARE
from itrd_nlp.cli.commands.completion import completion
from itrd_nlp.cli.commands.demo import DEMO
from itrd_nlp.cli.commands.distill import DISTILL
from itrd_nlp.cli.commands.doctor import DOCTOR
from itrd_nlp.cli.commands.evaluate import EVALUATE
from itrd_nlp.cli.commands.export import EXPORT
from itrd_nlp.cli.commands.predict import PREDICT
from itrd_nlp.cli.commands.recipes import RECIPES
from itrd_nlp.cli.commands.report import REPORT
from itrd_nlp.cli.commands.score import SCORE
from itrd_nlp.cli.commands.shrink import SHRINK
from itrd_nlp.cli.commands.sweep import SWEEP

TRAINING = (SHRINK, DISTILL, COMPARE, SWEEP)
MODELS = (EVALUATE, EXPORT, BENCHMARK, SCORE, PREDICT, DEMO)
OTHERS = (REPORT, RECIPES, CACHE, DOCTOR)
COMMANDS = {command.name: command for command in (*TRAINING, *MODELS, *OTHERS)}
COMMANDS["completion"] = completion(COMMANDS)
