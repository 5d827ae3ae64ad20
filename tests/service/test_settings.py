import pytest

from service.cpus import available_cpus
from service.errors import SettingsError
from service.settings import Settings, load_settings, stray_variables


@pytest.fixture
def toml(tmp_path):
    def write(text: str):
        path = tmp_path / "lgm.toml"
        path.write_text(text)
        return path

    return write


def test_defaults_are_the_documented_ones():
    settings = load_settings()
    assert (settings.host, settings.port, settings.policy, settings.device) == ("127.0.0.1", 8000, "flag", "cpu")
    assert settings.workers == min(4, available_cpus())
    assert settings.threads == available_cpus() // settings.workers
    assert settings.bundle.parts[-3:] == ("detectors", "bundles", "mnist")


def test_command_line_over_environment_over_file_over_default(monkeypatch, toml):
    path = toml('port = 1\nmax_batch_size = 2\npolicy = "withhold"\n')
    monkeypatch.setenv("LGM_CONFIG", str(path))
    monkeypatch.setenv("LGM_MAX_BATCH_SIZE", "3")
    monkeypatch.setenv("LGM_PORT", "4")
    settings = load_settings(port="5")
    assert (settings.port, settings.max_batch_size, settings.policy) == (5, 3, "withhold")
    assert settings.max_instances == Settings.model_fields["max_instances"].default


def test_the_file_named_on_the_command_line_wins(monkeypatch, toml):
    monkeypatch.setenv("LGM_CONFIG", "/does/not/exist.toml")
    assert load_settings(config=toml("port = 9")).port == 9


def test_an_empty_variable_is_as_if_unset(monkeypatch):
    monkeypatch.setenv("LGM_PORT", "")
    assert load_settings().port == 8000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "unknown setting 'prot'"),
        ("port = ", "is not TOML"),
        ("port = 70000", r"port \(--port, LGM_PORT\): .*65535, got 70000"),
        ("[table]\nport = 1", "unknown setting 'table'"),
        ("config = 'b.toml'", "names another file"),
    ],
)
def test_a_wrong_file_is_refused(toml, text, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(config=toml(text))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"nothing\.toml cannot be read"):
        load_settings(config=tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "-1"),
        ("device", "gpu"),
        ("device", "cuda,cpu"),
        ("workers", "0"),
        ("threads", "0"),
        ("precision", "float16"),
        ("compiler", "gcc"),
        ("inference_timeout_seconds", "0"),
        ("max_batch_size", "0"),
        ("max_wait_seconds", "nan"),
        ("max_wait_seconds", "2"),
        ("queue_capacity", "0"),
        ("max_instances", "many"),
        ("max_body_bytes", "1"),
        ("max_pixels", "0"),
        ("request_timeout_seconds", "0"),
        ("policy", "hide"),
        ("drain_seconds", "-1"),
        ("shutdown_timeout_seconds", "0"),
        ("log_format", "xml"),
        ("log_level", "loud"),
        ("access_log_share", "2"),
        ("rate_limit", "-1"),
        ("rate_limit", "nan"),
        ("rate_limit_burst", "0"),
        ("max_in_flight", "0"),
        ("max_in_flight_per_key", "-1"),
        ("max_held_bytes", "0"),
        ("max_connections", "0"),
        ("max_head_bytes", "100"),
        ("head_timeout_seconds", "0"),
        ("allow_anonymous", "perhaps"),
    ],
)
def test_a_value_out_of_range_names_setting_variable_and_value(name, value):
    with pytest.raises(SettingsError, match=rf"{name} \(--.*LGM_{name.upper()}\): .*got '{value}'"):
        load_settings(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("device", "gpu", "cuda:0"),
        ("trace_endpoint", "localhost", "http://localhost:4318/v1/traces"),
        ("trace_endpoint", "https://user:hunter2@otel/ v1", "http://localhost:4318/v1/traces"),
        ("rate_limit_store", "redis+sentinel://:hunter2@redis:26379/0", "redis://host:6379/0"),
        ("quarantine_database", ["postgresql://lgm:hunter2@db/lgm"], "string"),
        ("quarantine_store", ["ftp://lgm:hunter2@files"], "string"),
    ],
)
def test_a_refusal_advises_by_example_and_shows_no_password(name, value, advice):
    with pytest.raises(SettingsError) as refused:
        load_settings(**{name: value})
    assert advice in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert "^" not in str(refused.value)


def test_settings_that_are_printed_show_no_password():
    assert "hunter2" not in repr(load_settings(quarantine_database="postgresql://lgm:hunter2@db/lgm"))


@pytest.mark.parametrize("name", ["port", "max_batch_size", "rate_limit", "host"])
def test_true_is_no_number_and_no_text(toml, name):
    with pytest.raises(SettingsError, match=rf"{name} .*not true or false, got True"):
        load_settings(config=toml(f"{name} = true"))


def test_a_variable_that_is_no_setting_is_told_with_the_nearest():
    others = ["LGM_URL", "LGM_API_KEY", "LGM_DATA_DIR", "LGM_SCALE_MAX_REPLICAS", "PATH", "LGM_PORT", "lgm_port"]
    assert list(stray_variables(others)) == []
    assert list(stray_variables(["LGM_MAX_BATCH_SISE", "LGM_API_KEYSS", "LGM_XYZ"])) == [
        "the variable LGM_MAX_BATCH_SISE is no setting, but LGM_MAX_BATCH_SIZE is",
        "the variable LGM_API_KEYSS is no setting, but LGM_API_KEYS is",
        "the variable LGM_XYZ is no setting",
    ]


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(SettingsError, match=r"port .*; policy "):
        load_settings(port="x", policy="y")


def test_a_default_that_rests_on_a_wrong_setting_is_not_called_wrong():
    with pytest.raises(SettingsError) as refused:
        load_settings(port="x")
    assert str(refused.value).startswith("port (--port, LGM_PORT)")
    assert ";" not in str(refused.value)


def test_requests_that_the_queue_could_never_take_are_refused():
    with pytest.raises(SettingsError, match=r"max_instances .* more than queue_capacity"):
        load_settings(max_instances=10, queue_capacity=9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"api_keys": "keys.toml", "allow_anonymous": True}, "api_keys and allow_anonymous exclude each other"),
        ({"tls_certificate": "c.pem"}, "tls_certificate and tls_key are only good together"),
        ({"port": 8001, "grpc_port": 8001}, "grpc_port and port are both 8001"),
        ({"tls_key": "k.pem"}, "tls_certificate and tls_key are only good together"),
        ({"tls_client_ca": "ca.pem"}, "tls_client_ca needs tls_certificate and tls_key"),
        (
            {"max_held_bytes": 2048, "max_body_bytes": 4096},
            r"max_body_bytes \(4096\) is more than max_held_bytes \(2048\)",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(given, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(**given)


def test_two_servers_may_both_leave_the_choice_of_the_port():
    assert load_settings(port=0, grpc_port=0).grpc_port == 0


def test_every_setting_is_described():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(("quota", "most"), [("50000 100000", 1), ("100000 100000", 1), ("max 100000", 10**6)])
def test_processors_respect_the_containers_quota(tmp_path, quota, most):
    (tmp_path / "cpu.max").write_text(quota)
    assert 1 <= available_cpus(tmp_path) <= most


def test_without_a_quota_all_processors_count(tmp_path):
    assert available_cpus(tmp_path) >= available_cpus()


def test_processors_respect_a_quota_of_the_old_form(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert available_cpus(tmp_path) == 1
