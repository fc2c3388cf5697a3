"""An embedding model that is made here, and rewards on it."""

import pytest
from support.tiny import preference_rows
from support.tiny_encoder import save_tiny_encoder

from hf_lifealign.rewards import MiniLMBradleyTerryReward, encoder


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with the tiny encoder."""
    return save_tiny_encoder(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(autouse=True)
def own_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """No encoder, and nothing that it keeps, goes from one test to the next."""
    monkeypatch.setattr(encoder, "_ENCODERS", {})


@pytest.fixture
def fitted(encoder_dir: str) -> MiniLMBradleyTerryReward:
    """A reward for answers that begin with yes."""
    rows = preference_rows(40)
    return MiniLMBradleyTerryReward.fit(rows, name="yes", embedding=encoder_dir, template="turn", progress=False)
