"""`import amortis` as far as it needs no engine: settings, errors, exact log-probabilities."""

from __future__ import annotations

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import amortis
from common import errors
from tests.deploy.run.runs import config_of, make_run, put_adapter

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digit_model: Path) -> Path:
    home = tmp_path_factory.mktemp("opened")
    made = make_run(config_of(home, digit_model, "--run.name", "mine", "--task.high", "99"))
    put_adapter(made, 0.3)
    return made


def test_log_probs_of_all_texts_are_a_distribution_and_impossible_ones_have_none(folder: Path) -> None:
    texts = ["", *("".join(digits) for k in (1, 2) for digits in itertools.product("0123456789", repeat=k))]
    with amortis.load(folder) as sampler:
        log_q = sampler.log_prob("number :", texts)
        assert isinstance(log_q, np.ndarray) and log_q.shape == (111,) and np.isfinite(log_q).all()
        assert np.exp(log_q).sum() == pytest.approx(1, abs=1e-5)
        # Too long; a word that the mask leaves out; the terminator within.
        assert (sampler.log_prob("number :", ["123", "number", "1.2"]) == -np.inf).all()
        one, two = sampler.log_prob(["number :", "7 :"], [["12", "123"], ["12"]])
        assert one[0] == pytest.approx(log_q[texts.index("12")], abs=1e-5) and one[1] == -np.inf
        assert two.shape == (1,) and two[0] != pytest.approx(one[0], abs=1e-3)
        # Token ids are taken too.
        ids = sampler.run.codec.encode("12")
        assert sampler.log_prob("number :", [ids])[0] == pytest.approx(one[0], abs=1e-5)
        assert sampler.log_prob("number :", []).shape == (0,)


@pytest.mark.parametrize(
    ("prompt", "texts", "message"),
    [
        ("number :", "12", "texts = '12': is one text; give a list of texts"),
        (["number :", "7"], [["12"]], "texts = 1: lists are given for 2 prompts"),
        ("", ["12"], "prompt = '': is empty"),
        ("number " * 70, ["12"], "prompt = .*takes 7. tokens"),
    ],
)
def test_what_can_not_be_scored_is_named(folder: Path, prompt: str, texts: list[str], message: str) -> None:
    with amortis.load(folder) as sampler, pytest.raises(amortis.UserError, match=message):
        sampler.log_prob(prompt, texts)


def test_what_can_not_be_drawn_is_named_before_an_engine_starts(folder: Path) -> None:
    with amortis.load(folder) as sampler:
        for call, message in (
            (lambda: sampler.sample("number :", 0), "n = 0: draws nothing"),
            (lambda: sampler.sample("number :", temperature=9.0), "temperature = 9.0: is not above 0 and up to 2"),
            (lambda: sampler.posterior("number :", resample=0), "resample = 0: draws nothing"),
            (lambda: sampler.sample(["number :", ""]), "prompt = '': is empty"),
            (lambda: sampler.sample("number :", row={"a": 1}), "prompt = 'number :': is given beside a row"),
        ):
            with pytest.raises(amortis.UserError, match=message):
                call()
        assert sampler.sample([]) == []
        assert sampler._engine is None
    with pytest.raises(amortis.UserError, match="is closed; load the run again"):
        sampler.log_prob("number :", ["1"])


def test_a_folder_that_is_no_run_and_settings_that_are_none_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(amortis.UserError, match=r"holds no config\.yaml"):
        amortis.load(tmp_path)
    with pytest.raises(amortis.UserError, match="no such folder"):
        amortis.load(folder, model__name="./gone")
    with pytest.raises(amortis.UserError, match="modle"):
        amortis.load(folder, **{"modle.name": "x"})


def test_settings_of_every_kind_go_over_the_run_s(folder: Path) -> None:
    settings = {"actor.max_in_flight": 3, "actor.enforce_eager": True, "task.evaluation_samples": 5}
    with amortis.load(str(folder), **settings, run__evaluate_base=False) as sampler:
        config = sampler.run.config
        assert (config.actor.max_in_flight, config.actor.enforce_eager, config.run.evaluate_base) == (3, True, False)
        assert config.task.evaluation_samples == 5


def test_a_mistake_in_a_configuration_is_the_command_line_s(tmp_path: Path) -> None:
    assert amortis.UserError is errors.UserError and amortis.RunFault is errors.RunFault
    with pytest.raises(amortis.UserError, match=r"task\.name = 'rngg'"):
        amortis.train({"task": {"name": "rngg"}})
    with pytest.raises(amortis.UserError, match=r"learner\.lrr: is no setting"):
        amortis.train({"task": {"name": "rng"}, "learner": {"lrr": 1}})
    with pytest.raises(amortis.UserError, match="can't be read"):
        amortis.train(tmp_path / "gone.yaml")
    with pytest.raises(amortis.UserError, match=r"model\.name = './gone'"):
        amortis.train({"task": {"name": "rng"}}, model__name="./gone")
    with ThreadPoolExecutor(1) as pool, pytest.raises(amortis.UserError, match="main thread"):
        pool.submit(amortis.train, {"task": {"name": "rng"}}).result()


def test_importing_it_is_quick_and_brings_neither_torch_nor_vllm() -> None:
    code = "import sys, amortis; print({'torch', 'vllm', 'ray'} & set(sys.modules), amortis.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set() 0.1.0"
