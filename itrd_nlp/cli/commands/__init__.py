"""The commands of ``itrd``, in modules by subject. A new command needs its functions there, and a line in COMMANDS."""

from itrd_nlp.cli.commands.models import BENCHMARK, DEMO, EVALUATE, EXPORT, SCORE
from itrd_nlp.cli.commands.others import CACHE, DOCTOR, RECIPES, REPORT, completion
from itrd_nlp.cli.commands.predict import PREDICT
from itrd_nlp.cli.commands.training import COMPARE, DISTILL, SHRINK, SWEEP

TRAINING = (SHRINK, DISTILL, COMPARE, SWEEP)
MODELS = (EVALUATE, EXPORT, BENCHMARK, SCORE, PREDICT, DEMO)
OTHERS = (REPORT, RECIPES, CACHE, DOCTOR)
COMMANDS = {command.name: command for command in (*TRAINING, *MODELS, *OTHERS)}
COMMANDS["completion"] = completion(COMMANDS)
