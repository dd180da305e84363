"""The methods on answers whose layers know what the output does not show, and guard evaluate on these."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("lightgbm")

from click.testing import Result
from documented_json import differences, documented
from scipy.special import logit
from scripted import END, WIDTH, AnsweringEngine, layers_of, scripted_model
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

import guard
from guard.cli import app
from guard.data.answers import Answers
from guard.data.further_calls import FurtherCalls
from guard.data.logit_lens import Lens
from guard.data.questions import Question, Row
from guard.data.recording import Journal, Run, record_rows
from guard.errors import InputError
from guard.evaluation import methods as evaluated
from guard.evaluation.evaluate import CROSSED, MIN_SAMPLED, EvaluationPlan, evaluate
from guard.evaluation.methods import methods_for
from guard.evaluation.protocol import leave_one_dataset_out
from guard.scoring.scorer import model_log_odds
from guard.scoring.scorer_file import BackOff

RUN = Run(model=scripted_model(), capture_point="mlp", system="", max_tokens=20)
# Few sets: within-dataset protocols fit every method five times on each, and pairs are as their square.
SETS, COUNT = ("a", "b", "c"), 70


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Three sets; one coordinate of one layer tells wrong answers, the log-probabilities hardly do."""
    engine = AnsweringEngine(lambda prompt, number: ("yes" + "s" * (number % 4), 0.4), model=RUN.model)
    engine.activations_at = lambda prompt, number: np.concatenate([layers_of(prompt, number)] * 2)
    rng = np.random.default_rng(0)
    reader = Lens(*(np.float32(rng.normal(size=size)) for size in (WIDTH, (END + 1, WIDTH))), epsilon=1e-5)
    rows: list[tuple[str, Row]] = [
        (name, Question(id=f"{number}", question=f"{name} {number}?", answers=("yes",)))
        for name in SETS
        for number in range(COUNT)
    ]
    with Journal(tmp_path_factory.mktemp("journal") / "j", RUN) as journal:
        list(
            record_rows(engine, rows, journal, run=RUN, lens=reader, calls=FurtherCalls(samples=3), sampled_rows=COUNT)
        )
        columns = Answers.from_journal(journal, rows, lambda row, answer: True).columns
    wrong = rng.random(len(columns.wrong)) < 0.5
    activations = rng.normal(size=columns.activations.shape).astype(np.float32)
    activations[:, :, 1, 0] += np.where(wrong, 2.5, -2.5)[:, None]
    logprobs = -rng.exponential(size=len(columns.logprobs)).astype(np.float32)
    return Answers.whole(replace(columns, wrong=wrong, activations=activations.astype(np.float16), logprobs=logprobs))


def test_what_the_layers_know_is_found_and_carried_to_other_sets(answers: Answers) -> None:
    methods = methods_for("all")
    found = leave_one_dataset_out(answers, methods, seed=0)
    assert {each.test for each in found} == set(SETS)
    auroc = {}
    for method in methods:
        # A method whose features say nothing here may refuse to be fitted.
        scores = [(each.wrong, each.p_wrong[method.name]) for each in found if method.name in each.p_wrong]
        if not scores:
            continue
        assert all(((p >= 0) & (p <= 1)).all() and len(p) == COUNT for _, p in scores), method.name
        auroc[method.name] = np.mean([roc_auc_score(wrong, p) for wrong, p in scores])
    assert auroc["guard"] > 0.85
    assert auroc["linear probe"] > 0.75
    for blind in ("log-probabilities", "margin", "length", "lens entropies", "chain of embedding"):
        assert 0.35 < auroc[blind] < 0.65, blind


def test_guards_own_score_backs_off_as_calibration_decides(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    logprobs = answers.columns.logprobs * np.repeat(1 + answers.wrong.astype(np.float32), answers.tokens)
    telling = Answers.whole(replace(answers.columns, logprobs=logprobs))
    own = next(each for each in methods_for("all") if each.name == "guard")
    plain = logit(own.fit(telling, seed=0).p_wrong(telling))
    monkeypatch.setattr(evaluated, "choose_back_off", lambda *_, **__: BackOff(start=0.0, most=1.0))
    fitted: Any = own.fit(telling, seed=0)
    mixed = logit(fitted.p_wrong(telling))
    other = model_log_odds(fitted.far.other, telling.features(fitted.schema), telling.activations)
    share = fitted.far.detector.ood_scores(telling.activations)
    assert share.max() > 0.9
    np.testing.assert_allclose(mixed, (1 - share) * plain + share * other, rtol=1e-6)


def test_parts_that_are_left_out_are_missed(answers: Answers) -> None:
    parts = {method.name: method for method in methods_for("parts")}
    found = leave_one_dataset_out(answers, [parts["guard"], parts["guard without the all-layer probe"]], seed=0)
    assert len(found) == len(SETS)
    for each in found:
        full = roc_auc_score(each.wrong, each.p_wrong["guard"])
        assert full > 0.8
        without = each.p_wrong.get("guard without the all-layer probe")  # refused where nothing is left to learn from
        assert without is None or roc_auc_score(each.wrong, without) < full - 0.15


def test_signals_that_were_not_recorded_are_named(answers: Answers) -> None:
    bare = Answers.whole(replace(answers.columns, lens=None, path=None, samples=((),) * len(answers)))
    found = leave_one_dataset_out(bare, (*methods_for("all"), *methods_for("sampling")[2:]), seed=0)
    assert len(found) == len(SETS)
    for each in found:
        assert "logit lens" in each.missing["lens entropies"]
        assert "logit lens" in each.missing["chain of embedding"]
        assert "--samples" in each.missing["self-consistency (5 samples)"]
        assert "guard" in each.p_wrong


def test_methods_read_recorded_answers_only(answers: Answers) -> None:
    from made_tables import made_table

    for method in methods_for("all"):
        with pytest.raises(InputError, match="read recorded answers"):
            method.fit(made_table(["x"], n=20), seed=0)


def test_an_evaluation_has_all_protocols_and_verdicts(answers: Answers) -> None:
    assert len(answers) >= MIN_SAMPLED
    other = Answers.whole(replace(answers.columns, metadata={**answers.columns.metadata, "model.quantization": "Q2_K"}))
    result = evaluate(answers, EvaluationPlan(draws=100, parts=False), shifted={"Q4 to Q2": other})
    settings = [setting.setting for setting in result.settings]
    assert settings[:4] == [
        "leave-one-dataset-out",
        "within-dataset cross-validation",
        "pairwise transfer",
        "shift: Q4 to Q2",
    ]
    assert "sampled again" in settings[4]
    verdicts = {(each.claim.text, each.claim.measure): each.outcome for each in result.verdicts}
    told = "better than log-probabilities on unseen data sets (AUROC)"
    assert verdicts[told, "AUROC"] == "reached"
    costs = {card.name: card.seconds for card in result.methods}
    assert costs["self-consistency (5 samples)"] is not None
    assert costs["text only"] is not None
    assert min(seconds for seconds in costs.values() if seconds is not None) > 0
    assert result.importance is not None


def test_the_command_writes_a_report_and_makes_it_again(answers: Answers, tmp_path: Path) -> None:
    answers.write(tmp_path / "r.parquet")
    run = CliRunner().invoke
    arguments = ["evaluate", str(tmp_path / "r.parquet"), "--out", str(tmp_path / "a.html"), "--draws", "100"]
    arguments += ["--per-set", "60"]
    (tmp_path / "notes.json").write_text('{"A dead end": "It led nowhere."}')
    done = run(
        app,
        [
            *arguments,
            "--protocol",
            "leave-one-dataset-out",
            "--no-parts",
            "--notes",
            str(tmp_path / "notes.json"),
            "--json",
        ],
    )
    assert done.exit_code == 0, done.output
    assert any(each["outcome"] == "reached" for each in json.loads(done.stdout)["verdicts"])
    assert not differences(json.loads(done.stdout), documented("guard evaluate --json"))
    page = (tmp_path / "a.html").read_text()
    assert "It led nowhere." in page
    assert "yess" not in page, "no answer is shown"
    arguments[3] = str(tmp_path / "w.html")
    assert run(app, [*arguments, "--protocol", "within-dataset cross-validation"]).exit_code == 0
    both = ["--from", str(tmp_path / "a.json"), "--from", str(tmp_path / "w.json")]
    again = run(app, ["evaluate", *both, "--out", str(tmp_path / "b.html")])
    assert again.exit_code == 0, again.output
    joined, newest = (json.loads((tmp_path / name).read_text()) for name in ("b.json", "w.json"))
    assert joined["provenance"]["created"] == newest["provenance"]["created"]
    (model,) = joined["models"]
    assert [setting["setting"] for setting in model["settings"]] == [
        "leave-one-dataset-out",
        "within-dataset cross-validation",
    ]
    assert {data["n"] for data in model["datasets"]} == {60}
    twice = run(app, ["evaluate", *both, *both[:2], "--out", str(tmp_path / "d.html")])
    assert "have the protocol 'leave-one-dataset-out'" in str(twice.exception)
    assert "Report written" in again.stdout
    assert (tmp_path / "b.html").stat().st_size > 100_000
    unknown = run(app, [*arguments, "--protocol", "pairwise transfr"])
    assert "Did you mean 'pairwise transfer'" in str(unknown.exception)
    for wrong in ([], [str(tmp_path / "r.parquet"), "--from", str(tmp_path / "a.json")]):
        refused = run(app, ["evaluate", *wrong, "--out", str(tmp_path / "c.html")])
        assert isinstance(refused.exception, InputError)
        assert "Give records" in str(refused.exception)


def test_the_command_takes_shifted_records_and_fewer_answers(answers: Answers, tmp_path: Path) -> None:
    metadata = {**answers.columns.metadata, "model.quantization": "Q2_K", "model.weights_sha256": "f" * 64}
    files = {name: tmp_path / f"{name}.parquet" for name in ("r", "s", "e", "wide")}
    answers.write(files["r"])
    Answers.whole(replace(answers.columns, metadata=metadata)).write(files["s"])
    engine = {**answers.columns.metadata, "model.engine": "transformers", "model.quantization": "float32"}
    Answers.whole(replace(answers.columns, metadata=engine)).write(files["e"])
    wide = replace(answers.columns, activations=np.concatenate([answers.activations] * 2, axis=-1))
    Answers.whole(replace(wide, metadata={**metadata, "model.width": 2 * metadata["model.width"]})).write(files["wide"])
    out = tmp_path / "a.html"

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["evaluate", str(files["r"]), "--out", str(out), "--draws", "100", *arguments])

    shift, same, ported, wide_shift = (["--shift", str(files[name])] for name in ("s", "r", "e", "wide"))
    done = run(*shift, *same, *ported, "--per-set", "50", "--protocol", "shift", "--no-parts", "--json")
    assert done.exit_code == 0, done.output
    (model,) = json.loads((tmp_path / "a.json").read_text())["models"]
    was = answers.metadata["model.quantization"]
    assert [setting["setting"] for setting in model["settings"]] == [
        f"shift: {was} to Q2_K",
        f"shift: {was} as it was",
        f"shift: {answers.metadata['model.engine']} {was} to transformers float32",
    ]
    claimed = {verdict["claim"]["setting"] for verdict in model["verdicts"]}
    assert claimed == {
        f"shift: {was} to Q2_K",
        f"shift: {answers.metadata['model.engine']} {was} to transformers float32",
    }
    assert {data["n"] for data in model["datasets"]} == {50}
    assert {method["name"] for method in model["methods"]} == set(CROSSED), "no other was run"
    for arguments, told in (
        ([*shift, *shift], "the same precision and engine"),
        (wide_shift, "of another model"),
        (["--protocol", "shift"], "needs --shift"),
        ([*shift, "--protocol", "within-dataset cross-validation"], "needs --shift"),
        ([str(files["s"]), *shift, "--protocol", "shift"], "of one model"),
    ):
        assert told in str(run(*arguments).exception)
    again = CliRunner().invoke(app, ["evaluate", "--from", str(tmp_path / "a.json"), "--out", str(out), *shift])
    assert "Leave --from out" in str(again.exception)


def test_the_command_tests_on_new_sets(answers: Answers, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.parquet" for name in ("r", "n", "other", "tuned")}
    first, *rest = sorted(set(answers.dataset))
    answers.take(np.flatnonzero(answers.dataset != first)).write(files["r"])
    answers.take(np.flatnonzero(answers.dataset == first)).write(files["n"])
    for name, fact in (("other", {"model.quantization": "Q2_K"}), ("tuned", {"model.weights_sha256": "f" * 64})):
        Answers.whole(replace(answers.columns, metadata={**answers.columns.metadata, **fact})).write(files[name])
    out = tmp_path / "a.html"

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["evaluate", str(files["r"]), "--out", str(out), "--draws", "100", *arguments])

    done = run("--new", str(files["n"]), "--protocol", "held-out datasets", "--json")
    assert done.exit_code == 0, done.output
    (model,) = json.loads((tmp_path / "a.json").read_text())["models"]
    assert [setting["setting"] for setting in model["settings"]] == ["held-out datasets"]
    assert [data["name"] for data in model["datasets"]] == [first]
    assert {verdict["claim"]["setting"] for verdict in model["verdicts"]} == {"held-out datasets"}
    assert "were recorded separately" in out.read_text()
    for arguments, told in (
        (["--new", str(files["other"])], "Q2_K on"),
        (["--new", str(files["tuned"])], "with other weights"),
        (["--new", str(files["r"])], f"'{rest[0]}' is in the records and in the new ones"),
        (["--protocol", "held-out datasets"], "needs --new RECORDS"),
        ([str(files["n"]), "--new", str(files["n"]), "--protocol", "held-out datasets"], "are of one model"),
    ):
        assert told in str(run(*arguments).exception)


def test_evaluate_writes_the_commands_files_but_for_times(answers: Answers, tmp_path: Path) -> None:
    records = tmp_path / "r.parquet"
    answers.take(np.flatnonzero(answers.dataset == SETS[0])).write(records)
    protocol = "within-dataset cross-validation"
    out = tmp_path / "a.html"
    given = ["--out", str(out), "--draws", "100", "--no-parts", "--seed", "3", "--protocol", protocol]
    assert CliRunner().invoke(app, ["evaluate", str(records), *given]).exit_code == 0
    first = json.loads(out.with_suffix(".json").read_text())
    seen: list[guard.Progress] = []
    found = guard.evaluate(records, out=out, draws=100, parts=False, seed=3, protocol=protocol, progress=seen.append)
    second = json.loads(out.with_suffix(".json").read_text())
    assert seen[-1].work.endswith(f": {protocol}")
    assert json.loads(found.to_json()) == second
    assert without_times(first) == without_times(second)
    (line,) = second["provenance"]["commands"]
    assert line == (f"guard evaluate {records} --out {out} --protocol '{protocol}' --no-parts --draws 100 --seed 3")


def test_evaluate_checks_both_of_its_files_before_it_computes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Cannot write the figures"):
        guard.evaluate(tmp_path / "r.parquet", out=tmp_path / "a.html", result=tmp_path / "no" / "a.json")
    with pytest.raises(InputError, match="would both be"):
        guard.evaluate(tmp_path / "r.parquet", out=tmp_path / "a.json")


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    del result["provenance"]["created"]
    for model in result["models"]:
        for method in model["methods"]:
            method.pop("seconds", None)
    return result
