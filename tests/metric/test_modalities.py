"""Which metric judges what, as a table: others are refused before a run begins, and by themselves."""

import numpy as np
import pytest

from dpsyn import compose
from dpsyn.build import build
from dpsyn.data import modality_of
from dpsyn.errors import UserError
from dpsyn.job import lacks
from dpsyn.metric import GROUPS, check_judges
from dpsyn.population import MODALITIES, Population, Samples, of_texts

RUNS = {
    "images": ["+experiment=digits"],
    "texts": ["+experiment=mails_smollm", "embedding=ngrams"],
    "rows": ["+experiment=breast_cancer"],
    "rows with texts": ["+experiment=mail_rows"],
}
VECTORS = ("frechet", "kid", "precision_recall", "mauve")  # of the run's embedding, which for cells is none of rows
TABLES = {"rows", "rows with texts"}
JUDGES = {
    **{name: {"images", "texts"} for name in VECTORS},
    "classifier": {"images"},
    **{name: {"texts"} for name in ("lengths", "diversity", "overlap", "text_classifier")},
    **{name: TABLES for name in ("marginals", "table_classifier", "table_regressor", "constraints")},
    "text_links": {"rows with texts"},
}


@pytest.fixture(scope="module", params=MODALITIES)
def composed(request, tmp_path_factory):
    """(modality, settings of a run with all metrics)."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "metric").mkdir()
    (folder / "metric/all.yaml").write_text(f"defaults: [{', '.join(JUDGES)}, _self_]\n")
    return request.param, compose.settings([*RUNS[request.param], "metric=all", f"run_dir={folder}/run"], folder)


def job(plain, name):
    """With one metric of these."""
    return build({**plain, "metric": {"every_n_releases": 0, "parts": {name: plain["metric"]["parts"][name]}}})


@pytest.mark.parametrize("name", JUDGES)
def test_a_metric_of_another_modality_is_refused_in_a_line_that_names_what_fits(name, composed):
    modality, plain = composed
    if modality in JUDGES[name]:
        made = job(plain, name)
        check_judges(f"metric.parts.{name}", made.metrics[name], modality)
        assert modality_of(made.data) == modality
        return
    with pytest.raises(UserError) as refused:
        list(lacks(job(plain, name)))
    line = str(refused.value)
    assert line.startswith(f"metric.parts.{name}") and f"metric={GROUPS[modality]}" in line and "\n" not in line


OTHER = {"split": "test", "id": None, "records": None, "on_error": "refuse"}
SOME = {
    "images": Samples(np.zeros((4, 8, 8, 1), np.uint8)),
    "texts": of_texts(["one text", "another text", "a third", "the last"]),
    "rows": Samples(np.zeros(4, [("age", np.int64)])),
    "rows with texts": Samples(np.array([(1, "a text")] * 4, [("age", np.int64), ("note", object)])),
}


def test_what_a_metric_does_not_judge_it_refuses_by_itself_too(composed):
    modality, plain = composed
    for name in (name for name, fits in JUDGES.items() if modality == min(fits)):
        metric = job(plain, name).metrics[name]
        for other in set(MODALITIES) - set(metric.judges):
            samples, none = SOME[other], np.full(4, -1)
            with pytest.raises(UserError, match="expected"):
                metric(Population(1, samples, np.zeros(4, np.int64), none, none < 0))


@pytest.mark.parametrize("group", GROUPS.items(), ids=str)
def test_the_group_that_is_named_judges_what_it_is_named_for(group):
    modality, name = group
    plain = compose.settings([*RUNS[modality], f"metric={name}"])
    for part, metric in build(plain).metrics.items():
        check_judges(f"metric.parts.{part}", metric, modality)


def test_real_data_of_another_modality_are_refused(composed):
    modality, plain = composed
    name = "marginals" if modality in TABLES else "frechet"
    target = "digits.Digits" if modality == "texts" else "mails.Mails"
    other = {"_target_": f"dpsyn.data.{target}"}
    part = {**plain["metric"]["parts"][name], "data": {**OTHER, **other}}
    with pytest.raises(UserError, match=rf"^metric\.parts\.{name}\.data=\(.*\): expected {modality}, as the run makes"):
        list(lacks(job({**plain, "metric": {"parts": {name: part}}}, name)))
