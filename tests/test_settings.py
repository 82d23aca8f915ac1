"""Settings: what is allowed, and what the processes say to what is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, clean_environment, free_port
from pydantic import ValidationError

import settings


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / script)],
        env={**clean_environment(), "REDIS_URL": "redis://127.0.0.1:1/0", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


SCRIPTS = ("run_web_server.py", "run_model_server.py", "run_service.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_number_is_refused_with_its_name_its_value_and_what_is_allowed(script: str) -> None:
    ended = run(script, BATCH_SIZE="abc")
    assert ended.returncode == 2
    assert "BATCH_SIZE='abc'" in ended.stderr
    assert "valid integer" in ended.stderr
    assert "default 32" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unreachable_redis_is_named_and_ends_the_process_with_2(script: str) -> None:
    ended = run(script, WEB_PORT=str(free_port()))
    assert ended.returncode == 2
    assert "REDIS_URL" in ended.stderr
    assert "127.0.0.1:1" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("url", ["redis://localhost:abc/0", "redis://localhost/0?no_such_option=1"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_redis_url_that_makes_no_sense_ends_the_process_with_2(script: str, url: str) -> None:
    ended = run(script, REDIS_URL=url, WEB_PORT=str(free_port()))
    assert ended.returncode == 2
    assert "REDIS_URL cannot be understood" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "http://localhost"),
        ("IMAGE_QUEUE", "a{b}"),
        ("IMAGE_DTYPE", "float64"),
        ("MODEL_PRECISION", "int8"),
        ("MODEL_ACTIVATION", "relu"),
        ("MODEL_PREPROCESSING", "0-1"),
        ("MODEL_ALLOW_CODE", ""),
        ("MODEL_ALLOW_CODE", "2"),
        ("MODEL_ALLOW_CODE", "../layers.py"),
        ("BATCH_SIZE", "0"),
        ("LEASE_SECONDS", "0"),
        ("WEB_PORT", "65536"),
        ("WEB_PORT", "0"),
        ("API_KEY", ""),
        ("API_KEY", " , "),
        ("ADMIN_API_KEY", ""),
        ("ADMIN_API_KEY", " , "),
        ("ADMIN_API_KEY", "ada:"),
        ("ADMIN_API_KEY", "sesame, :sesame"),
        ("ADMIN_API_KEY", "a name with blanks:sesame"),
        ("CORS_ORIGINS", ""),
        ("CORS_ORIGINS", "app.example.org"),
        ("CORS_ORIGINS", "https://app.example.org/"),
        ("CORS_ORIGINS", "https://*.example.org"),
        ("CORS_ORIGINS", "https://app.example.org, *"),
        ("CORS_ORIGINS", "null"),
        ("TOP", "-1"),
        ("REQUEST_TIMEOUT_SECONDS", "nan"),
    ],
)
def test_values_outside_their_range_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        settings.Settings()
    assert name in settings.explain(caught.value)


@pytest.mark.parametrize(
    ("value", "means"),
    [
        ("0", "0"),
        ("false", "0"),
        ("Off", "0"),
        (" 1 ", "1"),
        ("YES", "1"),
        ("my.Layers", "my.Layers"),
        ("_own", "_own"),
    ],
)
def test_code_is_allowed_by_a_truth_value_or_by_the_name_of_a_module(value: str, means: str) -> None:
    assert settings.Settings(model_allow_code=value).model_allow_code == means
    model = settings.ModelSettings(name="flowers", queue="q", model="flowers.keras", allow_code=value)
    assert model.allow_code == means


def test_secrets_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "htp://:secret@localhost")
    with pytest.raises(ValidationError) as caught:
        settings.Settings()
    assert "secret" not in settings.explain(caught.value)
    monkeypatch.setenv("REDIS_URL", "redis://:secret@localhost")
    monkeypatch.setenv("API_KEY", "secret, newer")
    assert "secret" not in repr(settings.Settings())
    assert settings.Settings().api_keys() == ["secret", "newer"]
    monkeypatch.setenv("ADMIN_API_KEY", "a b:secret")
    with pytest.raises(ValidationError) as caught:
        settings.Settings()
    assert "secret" not in settings.explain(caught.value)


def test_the_operators_keys_have_names_for_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.Settings().admin_keys() == []
    monkeypatch.setenv("ADMIN_API_KEY", "ada: sesame , plain, b.o-b:with:colons")
    assert settings.Settings().admin_keys() == [("ada", "sesame"), ("key-2", "plain"), ("b.o-b", "with:colons")]
    assert "sesame" not in repr(settings.Settings())


def test_origins_are_listed_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.Settings().allowed_origins() == []
    for value, origins in ("*", ["*"]), ("https://a.example, http://b.example:8080", None):
        monkeypatch.setenv("CORS_ORIGINS", value)
        assert settings.Settings().allowed_origins() == (origins or value.split(", "))


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in settings.Settings.model_fields.values())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_there_at_once_and_without_redis(script: str) -> None:
    ended = subprocess.run([sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 0
    assert "usage:" in ended.stdout


# What str.encode leaves out of each.
BOMS = {"utf-8": b"", "utf-8-sig": b"", "utf-16": b"", "utf-16-be": b"\xfe\xff", "utf-16-le": b"\xff\xfe"}


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / ".env"
    monkeypatch.setattr(settings, "ENV_FILE", path)
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n \r\n"])
@pytest.mark.parametrize("encoding", BOMS)
def test_an_env_file_is_read_as_editors_save_it(env_file: Path, encoding: str, end: str) -> None:
    env_file.write_bytes(BOMS[encoding] + f"IMAGE_QUEUE=Größe{end}TOP=3{end}".encode(encoding))
    config = settings.load()
    assert (config.image_queue, config.top) == ("Größe", 3)


def test_an_empty_env_file_sets_nothing(env_file: Path) -> None:
    for content in b"", b"\xef\xbb\xbf", b"\r\n":
        env_file.write_bytes(content)
        assert settings.load().top == 5


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-16-be", "utf-32"])
def test_an_env_file_that_is_not_utf8_ends_the_process_with_2_and_says_how_to_save_it(
    env_file: Path, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    env_file.write_bytes("IMAGE_QUEUE=Größe\n".encode(encoding))
    with pytest.raises(SystemExit) as ended:
        settings.load()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{env_file} is not UTF-8 text: save it as UTF-8.\n"


def test_an_env_file_that_may_not_be_read_ends_the_process_with_2(
    env_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env_file.symlink_to("/proc/1/mem")  # is there, and cannot be read, not even by root
    with pytest.raises(SystemExit) as ended:
        settings.load()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"{env_file} cannot be read: ")


def test_a_folder_named_env_is_somebodys_virtual_environment(env_file: Path) -> None:
    env_file.mkdir()
    assert settings.load().top == 5


def test_an_env_file_may_be_a_pipe_as_keepers_of_secrets_make_it(env_file: Path) -> None:
    os.mkfifo(env_file)
    with subprocess.Popen(["/bin/sh", "-c", f"printf 'TOP=3\\n' > '{env_file}'"]):
        assert settings.load().top == 3


@pytest.mark.parametrize("script", [*SCRIPTS, "queue_admin.py"])
def test_every_program_says_it_in_one_line(script: str, tmp_path: Path) -> None:
    # A .env beside settings.py, but not in the project.
    parts = [path.name for path in ROOT.glob("*_parts.py")]
    for name in ("serving", "helpers.py", "settings.py", "models_file.py", *parts, script):
        target = tmp_path / name
        target.write_bytes((ROOT / name).read_bytes()) if name.endswith(".py") else target.symlink_to(ROOT / name)
    (tmp_path / ".env").write_bytes(b"MODEL_LABELS=Gr\xf6\xdfe.txt\n")
    command = [sys.executable, str(tmp_path / script), *(["peek"] if script == "queue_admin.py" else [])]
    ended = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (2, f"{tmp_path / '.env'} is not UTF-8 text: save it as UTF-8.\n")


def test_opentelemetry_finds_its_variables_of_the_file_too_and_those_of_the_environment_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".env"
    file.write_text("OTEL_EXPORTER_OTLP_ENDPOINT=http://a:4318\nOTEL_SERVICE_NAME=file\nOTHER=1\nOTEL_EMPTY=\n")
    monkeypatch.setattr(settings, "ENV_FILE", file)
    monkeypatch.setattr(os, "environ", {"OTEL_SERVICE_NAME": "environment"})
    settings.hand_on_to_opentelemetry()
    assert os.environ == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318",
        "OTEL_SERVICE_NAME": "environment",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "64",
    }


def test_an_empty_endpoint_is_none_and_a_wrong_one_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.Settings(otel_exporter_otlp_endpoint="").otel_exporter_otlp_endpoint is None
    with pytest.raises(ValidationError) as wrong:
        settings.Settings(otel_exporter_otlp_endpoint="grpc://me:secret@collector:4317")
    assert "OTEL_EXPORTER_OTLP_ENDPOINT=(hidden) is not allowed" in settings.explain(wrong.value)
    assert "secret" not in settings.explain(wrong.value)


@pytest.mark.parametrize("address", ["", ":4318", "me:secret@", "me:secret@h:99999", "me:secret@[::1", "me:secret/@h"])
def test_an_endpoint_for_traces_without_a_host_or_a_port_is_refused_and_not_quoted(address: str) -> None:
    with pytest.raises(ValidationError) as wrong:
        settings.Settings(otel_exporter_otlp_endpoint=f"http://{address}")
    says = settings.explain(wrong.value)
    assert "it names no host, or no port" in says
    assert "secret" not in says


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"REDIS_URLS": "redis://a redis://b"}, "REDIS_URL and REDIS_URLS are both set."),
        ({"REDIS_URLS": "redis://:secret@a,redis://:secret@a"}, "numbers 1 and 2 of its URLs are the same"),
        ({"REDIS_URLS": "redis://a,http://:secret@b"}, "number 2 of its URLs begins with none of"),
        ({"REDIS_URLS": " , "}, "it names no Redis"),
        ({"REDIS_URLS": "redis://a,redis://b", "REDIS_SHARD": "3"}, "REDIS_URLS has 2"),
        ({"REDIS_SHARD": "2"}, "it says which Redis of REDIS_URLS, which is not set"),
        ({"REDIS_URLS": "redis://a", "REDIS_SHARD": "0"}, "REDIS_SHARD='0' is not allowed"),
    ],
)
def test_wrong_shards_are_refused_in_words_without_a_secret(
    given: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    if "both" in says:
        monkeypatch.setenv("REDIS_URL", "redis://c")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        settings.load()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert says in told
    assert "secret" not in told


def test_shards_are_numbered_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert settings.Settings().shards() == [("", settings.Settings().redis_url)]
    sentinels = "redis+sentinel://a:1,b:2/main/0"
    monkeypatch.setenv("REDIS_URLS", f"{sentinels}, redis://c\nunix:///d,")
    assert settings.Settings().shards() == [("1", sentinels), ("2", "redis://c"), ("3", "unix:///d")]
    monkeypatch.setenv("REDIS_SHARD", " AUTO ")
    assert settings.Settings().redis_shard == "auto"
