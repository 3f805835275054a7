"""Which runs a table needs at which scale, and how far each of them is, from files alone."""

import dataclasses
import json

import pytest

from robustfast.errors import UserError
from robustfast.evaluation.document import assemble, write
from robustfast.evaluation.papers.aat.numbers import TABLES
from robustfast.evaluation.papers.aat.tables import FAMILIES, FAMILY_ATTACKS, AATEvaluation, rows
from robustfast.evaluation.reproducible import SCALES
from robustfast.evaluation.reproduction import finished_epochs, plan
from robustfast.training.config import to_json
from robustfast.training.presets import PRESETS


def evaluated(run, made):
    return made.evaluation.finished(run, made)


def methods(made):
    return [run.method for run in made.runs]


@pytest.fixture
def made(tmp_path):
    return plan("aat-table3", "smoke", tmp_path, data_dir=tmp_path / "data", device="cpu")


def store(run, **changes):
    """What training leaves in a run folder before its first epoch ends."""
    run.path.mkdir(parents=True)
    config = to_json(dataclasses.replace(run.config, **changes))
    (run.path / "config.json").write_text(
        json.dumps({"robustfast": "0", "channels": 1, "num_classes": 10, "config": config})
    )


def evaluation(run, made, **changes):
    header = {
        "protocol": "aat",
        "checkpoint": {"name": "last", "epoch": run.config.epochs},
        "images": 256,
        "images_in_split": 256,
        "natural": {"s": 1.0, "r": 1.0, "n": 1.0},
        **changes,
    }
    return assemble(header, {attack.name: {"attack": attack.as_json()} for attack in made.evaluation.attacks})


def test_every_table_has_presets_and_attacks():
    assert set(FAMILIES) == set(TABLES)
    for name, family in FAMILIES.items():
        assert set(TABLES[name].attacks) <= set(FAMILY_ATTACKS[family])


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("scale", SCALES)
def test_every_row_gets_a_run(table, scale, tmp_path):
    made = plan(table, scale, tmp_path, data_dir=tmp_path)
    assert set(TABLES[table].rows) - {"st+at"} <= set(methods(made))
    assert len({run.path for run in made.runs}) == len(made.runs)
    if "pi" in methods(made):
        # Its inputs are made from the two models before it.
        before = methods(made)[: methods(made).index("pi")]
        assert {"st", "at"} <= set(before)


def test_one_way_rows_train_one_way(made):
    assert {run.method: run.ways for run in made.runs} == {"st": "n", "at": "r", "aat": "srn", "aatpp": "srn"}


def test_paper_scale_is_the_preset(tmp_path):
    made = plan("aat-table2", "paper", tmp_path, data_dir=tmp_path)
    for run in made.runs:
        if run.method != "pi":
            preset = PRESETS[f"cifar10-prn18-{run.method}"]
            assert dataclasses.replace(run.config, out=None, data_dir=None) == preset
    assert made.scale.comparable
    assert [attack.strength.steps for attack in made.evaluation.attacks] == [20, 20]


def test_pseudo_inputs_come_from_the_other_rows(tmp_path):
    made = plan("aat-table2", "paper", tmp_path, data_dir=tmp_path)
    runs = {run.method: run for run in made.runs}
    objective = runs["pi"].config.objective
    assert objective.robust_weights == runs["at"].path / "checkpoints" / "last.pt"
    assert objective.standard_weights == runs["st"].path / "checkpoints" / "last.pt"
    assert objective.steps == 1000


def test_small_scale_is_a_tenth_and_says_so(tmp_path):
    made = plan("aat-table2", "small", tmp_path, data_dir=tmp_path)
    config = made.runs[-1].config
    assert (config.epochs, config.milestones) == (10, (8, 9))
    assert not made.scale.comparable
    assert "not comparable" in made.note
    assert config.attack == PRESETS["cifar10-prn18-aatpp"].attack
    assert next(run for run in made.runs if run.method == "pi").config.objective.steps == 100


def test_smoke_scale_is_minutes_and_says_so(tmp_path):
    made = plan("aat-table1", "smoke", tmp_path, data_dir=tmp_path)
    for run in made.runs:
        assert (run.config.epochs, run.config.attack.steps, run.config.validate_every) == (1, 2, 0)
        assert run.config.batch_size <= 8
    assert "say nothing about the method" in made.note


def test_ablation_shares_the_runs_that_are_other_tables_methods(tmp_path):
    ablation = {
        run.method: run.path for run in plan("aat-ablation", "paper", tmp_path, data_dir=tmp_path).runs
    }
    table = {run.method: run.path for run in plan("aat-table1", "paper", tmp_path, data_dir=tmp_path).runs}
    assert ablation["terms:st,as"] == table["aat"]
    assert ablation["terms:st,as,ar,an"] == table["aatpp"]
    assert ablation["terms:st"] not in table.values()


def test_ablation_terms_reach_the_objective(tmp_path):
    made = plan("aat-ablation", "smoke", tmp_path, data_dir=tmp_path)
    terms = {run.method: run.config.objective.terms for run in made.runs}
    assert terms == {method: tuple(method.removeprefix("terms:").split(",")) for method in terms}


def test_tables_of_one_family_share_runs(tmp_path):
    shared = [
        {run.method: run.config for run in plan(table, "small", tmp_path, data_dir=tmp_path).runs}
        for table in ("aat-table2", "aat-table7")
    ]
    assert shared[0] == shared[1]


@pytest.mark.parametrize(
    ("table", "scale", "words"),
    [
        ("aat-table5", "smoke", "unknown table 'aat-table5'; did you mean"),
        ("aat-table2", "large", "unknown scale 'large'"),
    ],
)
def test_unknown_names(table, scale, words, tmp_path):
    with pytest.raises(UserError, match=words):
        plan(table, scale, tmp_path, data_dir=tmp_path)


def test_progress_of_a_run(made):
    run = made.runs[0]
    assert finished_epochs(run) is None
    store(run)
    assert finished_epochs(run) == 0
    (run.path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    assert finished_epochs(run) == 1


def test_folder_left_by_a_kill_before_the_run_began_is_cleared(made):
    run = made.runs[0]
    (run.path / "checkpoints").mkdir(parents=True)
    (run.path / "config.json.partial").write_text("{")
    assert finished_epochs(run) is None
    assert not run.path.exists()


def test_folder_with_something_else_is_left_alone(made):
    run = made.runs[0]
    run.path.mkdir(parents=True)
    (run.path / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match="in the way"):
        finished_epochs(run)
    assert (run.path / "thesis.tex").exists()


def test_run_of_another_configuration_is_refused(made):
    run = made.runs[0]
    store(run, seed=7)
    with pytest.raises(UserError, match=r"trained otherwise: --seed 0 \(was 7\); give another --out"):
        finished_epochs(run)


def test_evaluation_is_kept_while_it_is_the_one_asked_for(made):
    run = made.runs[0]
    assert evaluated(run, made) is None
    path = run.path / "evaluation" / "aat.json"
    write(path, evaluation(run, made))
    assert evaluated(run, made) == evaluation(run, made)
    path.write_text("{")
    assert evaluated(run, made) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint": {"name": "last", "epoch": 0}},
        {"checkpoint": {"name": "best", "epoch": 1}},
        {"images": 255},
    ],
)
def test_other_evaluations_are_made_again(made, changes):
    run = made.runs[0]
    write(run.path / "evaluation" / "aat.json", evaluation(run, made, **changes))
    assert evaluated(run, made) is None


def test_evaluation_under_another_attack_is_made_again(made):
    run = made.runs[0]
    (attack,) = made.evaluation.attacks
    weaker = dataclasses.replace(attack, strength=dataclasses.replace(attack.strength, steps=1))
    other = dataclasses.replace(made, evaluation=AATEvaluation((weaker,)))
    write(run.path / "evaluation" / "aat.json", evaluation(run, other))
    assert evaluated(run, made) is None


def test_rows_put_two_one_way_runs_together(document):
    st = document("n", {"n": 1.0}, {"mnist-linf": (None, 0.25)})
    at = document("r", {"r": 0.5}, {"mnist-linf": (0.75, None)})
    found = rows("aat-table3", {"st": st, "at": at})
    assert list(found) == ["st", "at", "st+at"]
    assert found["st+at"]["adversarial"] == {"r": 0.75, "n": 0.25, "dia": 0.5}
    assert list(rows("aat-table3", {"st": st})) == ["st"]
