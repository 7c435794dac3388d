import pytest

from pipeline.errors import SettingError
from serving.config import AppSettings, ServerSettings
from serving.keys import digest


def test_a_wrong_setting_is_reported_with_its_flag() -> None:
    with pytest.raises(SettingError, match="^--max-batch-rows is 0: .* greater than or equal to 1"):
        AppSettings(max_batch_rows=0)
    with pytest.raises(SettingError, match="^--port is 65536: "):
        ServerSettings(port=65536)
    with pytest.raises(SettingError, match="^--modle is 'm/1': "):
        AppSettings.model_validate({"modle": "m/1"})


def test_a_queue_must_hold_the_largest_request() -> None:
    with pytest.raises(
        SettingError, match="^--max-queue-rows is 10: must be at least --max-request-rows"
    ):
        AppSettings(max_queue_rows=10, max_request_rows=20)


def test_the_environment_sets_root_and_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", "s3://bucket/root")
    monkeypatch.setenv("PIPELINE_MODEL", "kmnist/best")
    settings = AppSettings()
    assert (settings.root, settings.model) == ("s3://bucket/root", "kmnist/best")
    assert AppSettings(model="mnist/production").model == "mnist/production"


def test_api_keys_must_be_digests() -> None:
    with pytest.raises(SettingError, match="^--api-keys is .*64 hex digits"):
        AppSettings(api_keys=("secret",))
    assert AppSettings(api_keys=(digest(b"secret"),)).api_keys


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_a_host_other_than_loopback_needs_a_key(host: str) -> None:
    with pytest.raises(SettingError, match="^--host is .* needs --api-keys"):
        ServerSettings(host=host)
    ServerSettings(host=host, api_keys=(digest(b"secret"),))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_needs_no_key(host: str) -> None:
    ServerSettings(host=host)


def test_grpc_needs_a_key_on_any_host() -> None:
    with pytest.raises(SettingError, match="^--grpc-port is 0: .* needs --api-keys"):
        ServerSettings(grpc_port=0)
    assert ServerSettings(grpc_port=0, api_keys=(digest(b"secret"),)).grpc_port == 0
