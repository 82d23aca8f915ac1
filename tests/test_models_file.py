"""models.yaml: what it may say, what becomes of it, and the sentence for whatever it may not say."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, clean_environment
from test_docs import rows

import settings
from models_file import WrongModelsFile

TWO = """
default: flowers
models:
  birds:
    model: MobileNetV2
    batch_size: 16
  flowers: {model: nets/flowers.keras, labels: flowers.txt, top: 3, precision: FLOAT32, servers: 2}
"""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "ENV_FILE", tmp_path / ".env")
    for field in settings.Settings.model_fields:
        monkeypatch.delenv(field.upper(), raising=False)


def models_of(folder: Path, text: str | bytes, **others: object) -> list[settings.ModelSettings]:
    file = folder / "models.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return settings.Settings(models_file=str(file), **others).models()  # type: ignore[arg-type]


def test_without_a_file_there_is_one_model_made_of_the_settings() -> None:
    config = settings.Settings(model="MobileNetV2", image_width=160, top=3, model_servers=2, image_queue="q")
    (model,) = config.models()
    assert (model.name, model.queue, model.model, model.input_size()) == (None, "q", "MobileNetV2", (160, 224))
    assert (model.top, model.servers, model.batch_size, model.weights) == (3, 2, 32, "imagenet")
    assert settings.Settings(model_name="a.b").models()[0].name == "a.b"


def test_every_key_replaces_a_setting_and_every_setting_of_a_model_has_a_key() -> None:
    assert settings.ModelSettings.model_fields.keys() - {"name", "queue"} == settings.OF_A_MODEL.keys()
    of_a_model = {name for name in settings.Settings.model_fields if name.startswith(("model", "image_w", "image_h"))}
    assert of_a_model - {"model_name", "models_file"} == set(settings.OF_A_MODEL.values()) - {"batch_size", "top"}


def test_the_example_can_be_read_and_the_page_shows_it() -> None:
    example = ROOT / "examples" / "models.yaml"
    exact, quick = settings.Settings(models_file=str(example)).models()
    assert (exact.name, exact.model, quick.name, quick.top) == ("exact", "ResNet50", "quick", 3)
    assert f"```yaml\n{example.read_text()}```" in (ROOT / "docs" / "models.md").read_text()


def test_the_page_tells_each_key_with_its_setting_and_its_default() -> None:
    told = {
        key.strip("`"): (setting, default) for key, setting, default in rows(ROOT / "docs" / "models.md", "| key |")
    }
    fields = settings.ModelSettings.model_fields
    assert told == {
        key: (f"`{setting.upper()}`", "" if key == "model" else f"`{settings.default_in_words(fields[key])}`")
        for key, setting in settings.OF_A_MODEL.items()
    }


def test_the_default_comes_first_each_has_a_queue_of_its_own_and_what_is_unset_has_its_default(tmp_path: Path) -> None:
    flowers, birds = models_of(tmp_path, TWO, image_queue="zoo")
    assert (flowers.name, flowers.queue, birds.name, birds.queue) == ("flowers", "zoo:flowers", "birds", "zoo:birds")
    assert (flowers.top, flowers.precision, flowers.servers) == (3, "float32", 2)
    assert (birds.top, birds.precision, birds.servers, birds.batch_size) == (5, "auto", 1, 16)
    assert (birds.model, birds.labels, birds.weights) == ("MobileNetV2", "imagenet", "imagenet")
    first, _ = models_of(tmp_path, TWO.replace("default: flowers", ""))
    assert first.name == "birds"


def test_a_relative_path_counts_from_the_files_folder_whether_or_not_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "saved").mkdir()
    text = (
        "models:\n"
        "  a: {model: nets/a.keras, weights: random, labels: a.txt}\n"
        "  b: {model: saved, labels: numbers, weights: /elsewhere/b.weights.h5}\n"
        "  c: {model: ResNet50, weights: c.weights.h5}\n"
        "  d: {model: org/net, runtime: 'mine:Runtime'}\n"
    )
    a, b, c, d = models_of(tmp_path, text)
    assert (a.model, a.weights, a.labels) == (f"{tmp_path}/nets/a.keras", "random", f"{tmp_path}/a.txt")
    assert (b.model, b.weights, b.labels) == (f"{tmp_path}/saved", "/elsewhere/b.weights.h5", "numbers")
    assert (c.model, c.weights, d.model) == ("ResNet50", f"{tmp_path}/c.weights.h5", "org/net")
    monkeypatch.chdir(tmp_path)
    assert settings.Settings(models_file="models.yaml").models()[0].model == f"{tmp_path}/nets/a.keras"


def test_a_file_is_read_as_editors_save_it(tmp_path: Path) -> None:
    for text in (b"\xef\xbb\xbf" + TWO.encode(), TWO.replace("\n", "\r\n").encode(), b"# \xc3\xb6\n" + TWO.encode()):
        assert [model.name for model in models_of(tmp_path, text)] == ["flowers", "birds"]


def test_a_word_that_another_yaml_would_take_for_something_else_is_the_word(tmp_path: Path) -> None:
    (model,) = models_of(tmp_path, "models: {2024: {model: no, labels: 2024-01-01}}")
    assert (model.name, model.model, model.labels) == ("2024", "no", f"{tmp_path}/2024-01-01")


NAME = "take 1 to 64 of A-Z a-z 0-9 . _ -, not dots alone."
NO_MODELS = "it names no models. Write them under `models:`, as `models: {flowers: {model: flowers.keras}}`."
WRONG = {
    "empty": ("", ": it is empty. Write the models into it, as `models: {flowers: {model: flowers.keras}}`."),
    "comments alone": (
        "# later\n",
        ": it is empty. Write the models into it, as `models: {flowers: {model: flowers.keras}}`.",
    ),
    "no mapping": ("- flowers\n", ", line 1: the file is no mapping: lines of the form `key: value` belong here."),
    "a word": ("flowers\n", ", line 1: the file is no mapping: lines of the form `key: value` belong here."),
    "no models": ("default: a\n", f": {NO_MODELS}"),
    "models of nothing": ("default: a\nmodels:\n", f", line 2: {NO_MODELS}"),
    "models of no entry": ("models: {}\n", f", line 1: {NO_MODELS}"),
    "a list of models": (
        "models:\n  - a\n  - b\n",
        ", line 2: `models` is no mapping: lines of the form `key: value` belong here.",
    ),
    "unknown key at the top": (
        "models: {a: {model: x}}\nmodel: y\n",
        ", line 2: there is no key `model` here; there are `default` and `models`.",
    ),
    "unknown key": (
        "models:\n  a:\n    model: x\n    batchsize: 3\n",
        ", line 4: `models.a` has no key `batchsize`; it may have "
        f"{', '.join(f'`{key}`' for key in settings.OF_A_MODEL)}.",
    ),
    "a name twice": (
        "models:\n  a: {model: x}\n  b: {model: y}\n  a: {model: z}\n",
        ", line 4: `a` stands here again: line 2 has it. Keep one of them.",
    ),
    "a key twice": (
        "models:\n  a:\n    model: x\n    model: y\n",
        ", line 4: `model` stands here again: line 3 has it. Keep one of them.",
    ),
    "a name with a blank": (
        "models:\n  my flowers: {model: x}\n",
        f", line 2: `my flowers` is no name of a model: {NAME}",
    ),
    "a name with a slash": ("models:\n  a/b: {model: x}\n", f", line 2: `a/b` is no name of a model: {NAME}"),
    "a name of dots": ("models:\n  ..: {model: x}\n", f", line 2: `..` is no name of a model: {NAME}"),
    "a name that is too long": (
        f"models:\n  {'a' * 65}: {{model: x}}\n",
        f", line 2: `{'a' * 65}` is no name of a model: {NAME}",
    ),
    "an entry of nothing": (
        "models:\n  a:\n  b: {model: x}\n",
        ", line 2: `models.a` says nothing. Write its `model:` below it, further to the right.",
    ),
    "an entry that is a word": (
        "models:\n  a: ResNet50\n",
        ", line 2: `models.a` is no mapping: lines of the form `key: value` belong here.",
    ),
    "no model": (
        "models:\n  a:\n    labels: x\n",
        ", line 2: `models.a` lacks the key `model`: a classifier of keras.applications by name, or a file.",
    ),
    "a key without a value": (
        "models:\n  a:\n    model: x\n    labels:\n",
        ", line 4: `models.a.labels` has no value. Write one behind the colon, or take the line out.",
    ),
    "a value that is a list": (
        "models:\n  a:\n    model: [x, y]\n",
        ", line 3: `models.a.model` must be one text, number or truth value.",
    ),
    "a value with a tag": (
        "models:\n  a:\n    model: !!python/name:os.system x\n",
        ", line 3: `models.a.model` must be one text, number or truth value.",
    ),
    "default of nothing": (
        "default:\nmodels: {a: {model: x}}\n",
        ", line 1: `default` has no value. Write one behind the colon, or take the line out.",
    ),
    "default that names none": (
        "models: {a: {model: x}, b: {model: y}}\ndefault: c\n",
        ", line 2: `default: c` names no model of the file; it has `a`, `b`.",
    ),
    "a batch size that is no number": (
        "models:\n  a:\n    model: x\n    batch_size: many\n",
        ", line 4: `models.a.batch_size: many` is not allowed: Input should be a valid integer, unable to parse string "
        "as an integer. batch_size: most images that the model runs together; default 32.",
    ),
    "a top of 0": (
        "models:\n  a: {model: x, top: 0}\n",
        ", line 2: `models.a.top: 0` is not allowed: Input should be greater than or equal to 1. top: how many "
        "predictions an answer has; default 5.",
    ),
    "servers below 0": (
        "models:\n  a: {model: x, servers: -1}\n",
        ", line 2: `models.a.servers: -1` is not allowed: Input should be greater than or equal to 0. servers: how "
        "many model servers run_service.py starts for it; 0: one for each NVIDIA GPU, or one; default 1.",
    ),
    "tabs": (
        "models:\n\ta:\n\t\tmodel: x\n",
        ", line 2: it is indented with a tab, which YAML forbids. Indent with blanks.",
    ),
    "no YAML": ("models: {a: {model: x\n", ", line 2: this is no YAML: expected ',' or '}', but got '<stream end>'."),
    "two documents": (
        "models: {a: {model: x}}\n---\nmodels: {}\n",
        ", line 2: this is no YAML: but found another document.",
    ),
    "an alias of nothing": ("models: *a\n", ", line 1: this is no YAML: found undefined alias 'a'."),
    "a null character": ("models: \0\n", ": it has characters that YAML forbids. Save it as plain UTF-8 text."),
    "too deep": ("[" * 600, ": it is nested too deeply."),
    "Latin-1": ("models: {größe: {model: x}}".encode("latin-1"), ": it is not UTF-8 text. Save it as UTF-8."),
    "UTF-16": (TWO.encode("utf-16"), ": it is not UTF-8 text. Save it as UTF-8."),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_with_its_line_its_key_and_what_to_do(case: str, tmp_path: Path) -> None:
    text, says = WRONG[case]
    with pytest.raises(WrongModelsFile) as wrong:
        models_of(tmp_path, text)
    assert str(wrong.value) == f"{tmp_path / 'models.yaml'}{says}"


@pytest.mark.parametrize("setting", ["model_name", *settings.OF_A_MODEL.values()])
def test_a_setting_that_the_file_replaces_is_refused_beside_it(setting: str, tmp_path: Path) -> None:
    keys = {setting: key for key, setting in settings.OF_A_MODEL.items()}
    text = {"model_precision": "auto", "model_runtime": "auto", "model_activation": "auto"}
    value = (text | {"model_preprocessing": "none", "model_allow_code": "1"}).get(setting, "3")
    with pytest.raises(WrongModelsFile) as wrong:
        models_of(tmp_path, TWO, **{setting: value})
    instead = f"`{keys[setting]}:`" if setting in keys else "the names under `models:`"
    name = setting.upper()
    assert str(wrong.value) == (
        f"{name} and MODELS_FILE are both set. Take {name} out of the environment and of .env: "
        f"{tmp_path / 'models.yaml'} says it of each model, by {instead}."
    )


@pytest.mark.parametrize("where", ["nowhere.yaml", "", "mem"])
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(where: str, tmp_path: Path) -> None:
    (tmp_path / "mem").symlink_to("/proc/1/mem")
    config = settings.Settings(models_file=str(tmp_path / where))
    with pytest.raises(WrongModelsFile, match=rf"^MODELS_FILE: {tmp_path / where} cannot be read: [A-Z].*\.$"):
        config.models()


@pytest.mark.parametrize("script", ["run_web_server.py", "queue_admin.py"])
def test_a_process_that_meets_a_wrong_file_says_so_in_one_line_and_exits_with_2(script: str, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("models:\n  a: {modle: x}\n")
    command = [sys.executable, str(ROOT / script), *(["peek"] if script == "queue_admin.py" else [])]
    environment = clean_environment() | {"MODELS_FILE": str(file)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert f"{file}, line 2: `models.a` has no key `modle`; it may have `model`, `weights`," in line
