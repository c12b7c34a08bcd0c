"""Settings shared by the tests of this folder."""

import logging
import warnings

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def single_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*json.*")
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning.*")
        yield
