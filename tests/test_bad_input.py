"""A user's mistake is one message on stderr and exit code 2, before anything compiles, with nothing written or lost."""

import re
from pathlib import Path

import pytest

from cl_jax import cli, runner, sweep
from cl_jax.checks import check_experiment
from cl_jax.experiment import load_experiment, members
from cl_jax.plan import folder_label

CONFIG = """
from cl_jax.adapters import Freeze, Full, Lora
from cl_jax.config import replace
from cl_jax.experiment import Cnn, Dropout, Entry, Experiment, Mlp, Run, sweep
from cl_jax.methods import *
from cl_jax.optimizers import Adam, Sgd
from cl_jax.tasks import *

base = Run(stream=Permuted(num_tasks=2), model=Mlp(hidden=(8,)), steps=4)
experiment = Experiment(name="tiny", description="", entries=sweep("one", base), seeds=(0, 1))
"""
NAN = "float('nan')"

# A field of the run and its value -> what the message has to say.
RUNS = {
    "steps=0": "one.steps: was given 0; the least allowed is 1",
    "steps=None": "one.steps: expected a whole number, was given None",
    "steps=2**40": "one.steps: was given 1099511627776; the most allowed is",
    "batch_size=5000": "one: batch_size 5000 is larger than the smallest task",
    "batch_size=2.5": "one.batch_size: expected a whole number, was given 2.5",
    "scenario='taks'": "unknown value of one.scenario: 'taks'; known: class, domain, task. Did you mean 'task'?",
    "scenario=['task']": "unknown value of one.scenario:",
    "scenario='task', stream=Split(num_tasks=10)": "scenario 'task' with one class a task leaves one output",
    "scenario='domain', stream=Split(num_tasks=10)": "scenario 'domain' with one class a task leaves one output",
    "stream=Split(num_tasks=11)": "one: stream.num_tasks: was given 11 split tasks, but the data has 10",
    "exposure='all', scenario='class', stream=Split()": "the right outputs of later tasks: use training_mask='all'",
    "training_mask='all'": "one.training_mask: was given 'all' in scenario 'domain', where it changes nothing",
    "exposure='sen'": "Did you mean 'seen'?",
    "boundary='fuzy'": "one.boundary: expected a config such as Sharp(), Fuzzy(), LinearDecay(), Scattered(), was",
    "boundary=Fuzzy(width=1.5)": "one.boundary.width: was given 1.5; allowed are finite numbers from 0 to 1",
    "boundary=Fuzzy(), exposure='seen'": "one: boundary Fuzzy says which tasks are shown, and so does exposure 'seen'",
    "boundary=Fuzzy(), scenario='task'": "one: boundary Fuzzy withholds tasks, which scenario 'task' tells: use",
    "boundary=LinearDecay(), scenario='class'": "where training_mask 'seen' may leave out the right output: use",
    "boundary=Fuzzy(), methods={'e': Ewc(), 'r': Replay()}": "leaves no boundary at which methods.e could act",
    "boundary=Fuzzy(), methods={'r': Replay(weighting='balanced')}": "no boundary at which methods.r could act",
    "boundary=Fuzzy(), methods={'e': ErAce(competing='task'), 'a': Average(reset=True)}": "methods.e and methods.a",
    "boundary=Fuzzy(), adapter=Lora(rank=2)": "one: boundary Fuzzy leaves no boundary at which adapter Lora could act",
    "boundary=Fuzzy(), adapter=Freeze(), optimizer=Adam(reset=True)": "which adapter Freeze and optimizer.reset could",
    "boundary=Scattered(), steps=2**18": "one: boundary Scattered shuffles fewer than 16777216 examples, and",
    "passes=0": "one.passes: was given 0; the least allowed is 1",
    "passes=2, stream=Split()": "one: passes: was given 2 for tasks that differ in size",
    "recent=0": "one.recent: was given 0; the least allowed is 1",
    "stream=Repeated(order=(0, 7))": "one: stream.order: was given (0, 7); expected at least one number of a task",
    "stream=Repeated(order=())": "one: stream.order: was given ()",
    "stream=Repeated(order=2)": "one.stream.order: expected a tuple of whole numbers",
    "stream=Repeated(stream='permutd')": "was given the text 'permutd'. Did you mean Permuted()?",
    "stream=Unequal(stream=Adam())": "one.stream.stream: expected a config such as Permuted(), Rotated(), Corrupted()",
    "stream=Unequal(ratio=0.0)": "one: stream.ratio: was given 0.0; allowed are shares above 0, up to 1",
    "stream=Corrupted(kinds=('none', 'blurr'))": "unknown corruption in stream.kinds 'blurr'",
    "stream=Corrupted(severity=6)": "one: stream.severity: was given 6; the most allowed is 5",
    "stream=NoisyLabels(stream=Split(num_tasks=10))": "with one class a task there is none: use fewer tasks",
    "stream=Split(class_order='natural', class_seed=1)": "stream.class_seed: was given 1 for class_order 'natural'",
    f"validation={NAN}": "one.validation: was given nan",
    "validation=1.5": "one.validation: was given 1.5; allowed are shares between 0 and 1",
    "validation=1e-9": "leaves 1438 training, 0 validation",
    "data='digit'": "unknown data source 'digit'; known: digits",
    "data=3": "one.data: expected a text, was given 3",
    "data='idx:/nowhere'": "/nowhere is not there",
    "model=Mlp(hidden=[8])": "one.model.hidden: expected a tuple of whole numbers",
    "model=Mlp(hidden=(0,))": "one.model.hidden: was given 0; the least allowed is 1",
    "model=Mlp(hiden=(8,))": "unknown hyper-parameter of Mlp: 'hiden'; known: dropout, hidden",
    "model=Mlp(dropout=0.5)": "one.model.dropout: expected Dropout() or None, was given 0.5",
    "model=Mlp(input_dropout=Dropout(rate=1))": "one.model.input_dropout.rate: was given 1; allowed are finite numbers",
    "model='mlp'": "Encoder(), was given the text 'mlp'. Did you mean Mlp()?",
    "model=Adam()": "Standardized(), Decoder(), Encoder(), was given Adam(), which belongs in 'optimizer'",
    "optimizer=Adam": "RmsProp(), Adagrad(), was given the class Adam; write Adam()",
    "optimizer=None": "Adagrad(), or one of your own with build, learning_rate, reset; was given None",
    f"optimizer=Adam(learning_rate={NAN})": "one.optimizer.learning_rate: was given nan; allowed are finite numbers",
    "optimizer=Adam(learning_rate=-1)": "one.optimizer.learning_rate: was given -1; allowed are finite numbers from 0",
    "optimizer=Adam(learning_rate=1e39)": "one.optimizer.learning_rate: was given 1e+39; allowed are finite numbers",
    "optimizer=Adam(learning_rate='1e-3')": "expected a number, was given '1e-3' of type str",
    "diagnostics=('fisher_overlp',)": "unknown name in one.diagnostics: 'fisher_overlp'; known: base_kl, cost, fisher_",
    "diagnostics='cost'": "one.diagnostics: expected a tuple of names such as ('plasticity',), was given 'cost'",
    "diagnostics=('cost', 'cost')": "one.diagnostics: was given cost, cost; name each once",
    "diagnostics=['cost']": "one.diagnostics: was given ['cost'], which cannot be hashed; give a tuple or a name",
    "optimizer=Adam(reset=1)": "one.optimizer.reset: expected True or False, was given 1",
    "adapter=Lora(rank=9)": "one: adapter.rank: was given 9, larger than the matrix dense_0/kernel [64, 8] allows",
    "adapter=Lora(targets='(')": "one: adapter.targets: '(' is not a regular expression",
    "adapter=Freeze(pattern='dense_7')": "one: adapter.pattern: 'dense_7' matches none of the parameters",
    "methods=[Ewc()]": "one.methods: expected a dict such as {'ewc': Ewc()}",
    "methods={'ewc': 'ewk'}": "was given the text 'ewk'. Did you mean Ewc()?",
    "methods={'ewc': object()}": "which has no build",
    "methods={'ewc': Ewc}": "was given the class Ewc; write Ewc()",
    "methods={'e.w': Ewc()}": "a method's name expects letters, digits, - and _, was given 'e.w'",
    "methods={'ewc': Ewc(kind='exct')}": "unknown value of one.methods.ewc.kind: 'exct'",
    "methods={'ewc': Ewc(strenght=2)}": "line 9: unknown hyper-parameter of Ewc: 'strenght'; known: anchors",
    "methods={'r': Replay(capacity=2589)}": "one: methods.r.capacity 2589 is larger than the 2588 training examples",
    "methods={'r': Replay(capacity=0)}": "one.methods.r.capacity: was given 0; the least allowed is 1",
    "methods={'r': Replay(ratio=0)}": "one.methods.r.ratio: was given 0; the least allowed is 1",
    "methods={'r': Replay(ratio=0.5)}": "one.methods.r.ratio: expected a whole number, was given 0.5",
    "methods={'r': Replay(capacity=9, policy='class_balanced')}": "buffer capacity 9 for 10 classes leaves a class",
    "methods={'e': Ewc(proximal=True)}": "methods.e.proximal is exact only after a step of plain gradient descent",
    "optimizer=Sgd(use_momentum=True), methods={'e': Ewc(proximal=True)}": "was given Sgd with momentum: use",
    "optimizer=Sgd(), adapter=Lora(rank=2), methods={'e': Ewc(proximal=True)}": "which adapter Lora does not allow",
    "optimizer=Sgd(), adapter=Freeze(), methods={'e': Ewc(proximal=True)}": "which adapter Freeze does not allow",
    "adapter=Lora(rank=2), methods={'s': ShrinkPerturb()}": "methods.s moves weights directly, which adapter Lora does",
    "adapter=Freeze(), methods={'c': ContinualBackprop()}": "methods.c moves weights directly, which adapter Freeze",
    "adapter=Freeze(), methods={'i': Interpolation(continue_from=True)}": "methods.i moves weights directly, which",
    "model=Cnn(), methods={'c': ContinualBackprop()}": "one: continual_backprop replaces hidden units of dense layers",
    "optimizer=Sgd(), methods={'e': Ewc(proximal=True), 'f': Ewc(proximal=True)}": "methods e and f are both proximal",
}
ALLOWED = (
    "scenario='class'",
    "scenario='task'",
    "scenario='class', training_mask='current', stream=Split(num_tasks=10)",
    "methods={'r': Replay(capacity=2588)}",
    "methods={'r': Replay(capacity=10, policy='class_balanced')}",
    "optimizer=Sgd(learning_rate=1), methods={'e': Ewc(proximal=True), 'l': L2()}",
    "boundary=Fuzzy(), methods={'r': Replay(), 'e': ErAce(), 'm': Mir(), 'a': Average(), 'd': Der()}",
    "boundary=Scattered(share=1), scenario='class', training_mask='all', stream=Split()",
    "boundary=LinearDecay(), adapter=Lora(rank=2, first_task='lora')",
    "boundary=LinearDecay(), adapter=Freeze(from_task=0)",
    "stream=NoisyLabels(stream=Unequal(stream=Repeated(order=(0, 1, 0)))), passes=1, recent=1",
    "adapter=Lora(rank=8)",
    "model=Mlp(hidden=())",
    "methods={'ewc-2': Ewc(), 'replay_small': Replay()}",
    "model=Mlp(layer_norm=True, dropout=Dropout(), input_dropout=Dropout()), methods={'c': ContinualBackprop()}",
    "adapter=Lora(rank=2), methods={'i': Interpolation()}",
)

# What stands in config.py after `CONFIG` -> what the message has to say.
FILES = {
    "experiment = Experiment(": "line 11: SyntaxError: '(' was never closed",
    "1 / 0": "line 11: ZeroDivisionError: division by zero",
    "raise SystemExit(3)": "line 11: SystemExit: 3",
    "del experiment; mine = Experiment(name='', description='', entries=(), seeds=())": "Rename 'mine' to 'experiment'",
    "del experiment; experimnt = 3": "has no `experiment`; give it a line `experiment = Experiment(...)`. Did you mean",
    "experiment = 3": "expected `experiment = Experiment(...)`, found 3",
    "from cl_jax.methods import Ewk": "Did you mean 'Ewc'?",
    "import cl_jax.metods": "ModuleNotFoundError: No module named 'cl_jax.metods'",
    "Ewcc()": "NameError: name 'Ewcc' is not defined. Did you mean 'Ewc'?",
    "base.stps": "AttributeError: 'Run' object has no attribute 'stps'. Did you mean 'steps'?",
    "sweep('x', base, {'optimizer.learning_rat': [1]})": "unknown hyper-parameter in 'optimizer.learning_rat':",
    "sweep('x', base, {'methods.ewc.strength': [1]})": "unknown part of 'methods.ewc.strength' 'ewc'; known: none.",
    "sweep('x', base, {'steps': 3})": "x: axis 'steps' expects a list of at least one value, was given 3",
    "sweep('x', base, {'steps': []})": "x: axis 'steps' expects a list of at least one value, was given []",
}
EXPERIMENTS = {
    "entries=()": "entries expects a tuple of at least one Entry, was given ()",
    "entries=(sweep('a', base), sweep('b', base))": "write a star before it",
    "entries=(*sweep('a', base), *sweep('a', base))": "a: the same configuration twice",
    "entries=(*sweep('a', base, {'optimizer.learning_rate': [1, 1.0]}),)": "a: the same configuration twice",
    "entries=(*sweep('', base),)": "the label of an entry expects a text, was given ''",
    "entries=(Entry(label='a', run=3),)": "a: expected a Run, was given 3",
    "entries=sweep('a', base), seeds=()": "seeds expects a tuple of at least one whole number, was given ()",
    "entries=sweep('a', base), seeds=3": "seeds expects a tuple of at least one whole number, was given 3",
    "entries=sweep('a', base), seeds=(0, -1)": "seeds are whole numbers from 0 to 2147483647, was given -1",
    "entries=sweep('a', base), seeds=(0, 1, 0)": "seeds 0 given more than once",
    "entries=sweep('a', base), name=None": "name expects a text, was given None",
}


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(sweep, "run_shard", fail)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one message of a command that must exit 2 without a traceback."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert err.startswith("cl-jax: ") and err.count("\n") == 1 and "Traceback" not in err, err
    return err


def write(folder: Path, added: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.py").write_text(CONFIG + added)
    return folder


@pytest.mark.parametrize("fields", RUNS)
def test_run(fields: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = re.sub(r"^base = .*$", _run(fields), CONFIG, flags=re.MULTILINE)
    (tmp_path / "config.py").write_text(changed)
    assert RUNS[fields] in refused(capsys, "run", tmp_path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fields", ALLOWED)
def test_run_that_is_allowed(fields: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.py").write_text(re.sub(r"^base = .*$", _run(fields), CONFIG, flags=re.MULTILINE))
    cli.main(["plan", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "2 members in 1 static groups" in capsys.readouterr().out


def _run(fields: str) -> str:
    return f"base = Run(**dict(dict(stream=Permuted(num_tasks=2), model=Mlp(hidden=(8,)), steps=4), {fields}))"


@pytest.mark.parametrize("added", FILES)
def test_config_file(added: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert FILES[added] in refused(capsys, "run", write(tmp_path / "x", added), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fields", EXPERIMENTS)
def test_experiment(fields: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    added = f"experiment = Experiment(**dict(dict(name='tiny', description='', seeds=(0, 1)), {fields}))"
    assert EXPERIMENTS[fields] in refused(capsys, "run", write(tmp_path, added), "--out", tmp_path / "out")


def test_configs_that_are_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.py").write_bytes(b"\xff\xfe\x00")
    assert "config.py" in refused(capsys, "run", tmp_path)


def test_unknown_experiment_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    near = write(tmp_path / "permuted")
    text = refused(capsys, "run", tmp_path / "permutd")
    assert f"no experiment at {tmp_path / 'permutd'}: there is nothing" in text and f"Did you mean '{near}'?" in text
    (tmp_path / "empty").mkdir()
    assert "that folder has no config.py" in refused(capsys, "plan", tmp_path / "empty")
    (tmp_path / "notes.txt").touch()
    assert "that is not a .py file" in refused(capsys, "plan", tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seeds 0", "--seeds: was given 0; the least allowed is 1"),
        ("--steps 0", "--steps: was given 0; the least allowed is 1"),
        ("--width -1", "--width: was given -1; the least allowed is 1"),
        ("--seeds 3000000000", "--seeds: was given 3000000000; the most allowed is"),
        ("--data digit", "unknown data source 'digit'; known: digits"),
        ("--data no/folder", "--data no/folder: there is no such folder"),
        ("--data tfds:mnst", "unknown TFDS set 'mnst'"),
        ("--data-dir /", "--data-dir /: data digits reads no folder"),
        ("--data idx", "data source 'idx' needs the folder"),
    ],
)
def test_options(words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, "run", write(tmp_path / "x"), "--out", tmp_path / "out", *words.split())
    assert not (tmp_path / "out").exists()


def test_data_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    words = ("run", write(tmp_path / "x"), "--out", tmp_path / "out", "--data", folder)
    assert "lacks train-images-idx3-ubyte[.gz]" in refused(capsys, *words)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte").write_bytes(b"torn")
    assert "train-images-idx3-ubyte starts with bytes" in refused(capsys, *words)


@pytest.mark.parametrize("label", ["a/b", "..", "../../x", "[/red]", "ä" * 300, "a\0b", "con", ".hidden"])
def test_labels_become_plain_folder_names(label: str, tmp_path: Path) -> None:
    name = folder_label(label)
    assert re.fullmatch(r"[A-Za-z0-9_=+-][A-Za-z0-9_.=+-]{0,39}", name)
    added = f"experiment = Experiment(name='t', description='', entries=sweep({label!r}, base), seeds=(0, 1))"
    job = runner.prepare(write(tmp_path / "x", added), tmp_path / "out")
    assert [shard.folder.parent for shard in job.shards] == [tmp_path / "out" / "shards"]


def test_labels_that_look_alike_keep_folders_of_their_own(tmp_path: Path) -> None:
    entries = "(*sweep('a/', base), *sweep('a:', replace(base, {'steps': 5})))"
    added = f"experiment = Experiment(name='t', description='', entries={entries}, seeds=(0,))"
    job = runner.prepare(write(tmp_path / "x", added), tmp_path / "out")
    assert len({shard.folder for shard in job.shards}) == 2


def test_numbers_that_are_equal_are_one_member(tmp_path: Path) -> None:
    ids = []
    for rate in ("1", "1.0"):
        entries = f"sweep('a', base, {{'optimizer.learning_rate': [{rate}]}})"
        added = f"experiment = Experiment(name='t', description='', entries={entries}, seeds=(0,))"
        experiment = load_experiment(write(tmp_path, added))
        check_experiment(experiment)
        ids.append(members(experiment, {"digits": ""})[0].id)
    assert ids[0] == ids[1]


def test_plan_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["plan", str(write(tmp_path / "x")), "--out", str(tmp_path / "out")])
    assert "tiny: 2 members in 1 static groups" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
