"""The page: a function of what is released alone, and safe whatever is in it."""

import dataclasses
import html
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from harness import digits, own_data, parquet, run, same_noise

from dpsyn import cli
from dpsyn.errors import UserError
from dpsyn.files import STAMP
from dpsyn.population import Population, of_texts
from dpsyn.privacy.budget import Budget, Charge, Settings, exact_epsilon, format_epsilon
from dpsyn.privacy.statement import as_json, statement, unprotected
from dpsyn.report import facts, lineage, write_report
from dpsyn.report.lineage import stream, trees
from dpsyn.report.page import rendered
from dpsyn.runs.directory import RunDirectory, open_run

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}]]>"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


KINDS = ["images", "texts", "cells", "Tab-PE", "none", "noisy label shares", "not private"]


class Elements(html.parser.HTMLParser):
    """Tags and their attributes, ids, and what is seen of the text."""

    def __init__(self, content):
        super().__init__()
        self.found, self.text, self.inside = [], "", ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text += data


def check_safe(content):
    """No request, one script and one style, of which the policy knows the digests; no handler."""
    elements = Elements(content)
    assert [tag for tag, _ in elements.found].count("script") == 1 == [tag for tag, _ in elements.found].count("style")
    assert not {"iframe", "object", "embed", "base", "link", "form"} & {tag for tag, _ in elements.found}
    for tag, attributes in elements.found:
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("srcset", "action", "style"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                assert re.match(r"data:image/(png|jpeg);base64,|#", value), value
    policy = next(a["content"] for _, a in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "unsafe" not in policy
    return elements


@pytest.mark.parametrize("name", KINDS)
def test_every_run_ends_with_a_page_that_makes_no_request_and_is_small(runs, name):
    here = open_run(runs / name)
    content = (here.release / "report.html").read_text()
    elements = check_safe(content)
    assert len(content) < 3_000_000
    assert ("Differentially private" in elements.text) == (name not in ("none", "not private"))
    assert ("do not publish" in elements.text) == (name == "not private")
    ids = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    links = {attributes["href"][1:] for tag, attributes in elements.found if tag == "a"}
    assert links <= ids
    assert name in ("not private", "cells", "Tab-PE") or "δ 1 in 10,000" in elements.text
    assert all("alt" in attributes for tag, attributes in elements.found if tag == "img")


@pytest.mark.parametrize("name", KINDS)
def test_it_is_a_function_of_what_is_released_alone(runs, tmp_path, name):
    here = open_run(runs / name)
    shutil.copytree(here.release, tmp_path / "elsewhere" / here.release.name)
    alone = open_run(tmp_path / "elsewhere")
    expected = (here.release / "report.html").read_bytes()
    (alone.release / "report.html").unlink()
    assert not alone.private.exists()
    write_report(alone)
    assert (alone.release / "report.html").read_bytes() == expected
    assert {path.stat().st_mtime for path in [alone.release, *alone.release.rglob("*")]} == {STAMP}
    assert str(runs).encode() not in expected


def test_neighbouring_data_with_equal_noise_give_the_same_page(tmp_path, monkeypatch):
    rows = digits()
    parquet(tmp_path / "one.parquet", rows)
    parquet(tmp_path / "two.parquet", rows[:-1])
    with monkeypatch.context() as patched:
        noisy = same_noise(patched)
        run(tmp_path / "a", *own_data(tmp_path / "one.parquet"))
    with monkeypatch.context() as patched:
        same_noise(patched, noisy)
        run(tmp_path / "b", *own_data(tmp_path / "two.parquet"), "privacy.max_joint_epsilon=null")
    one, two = (RunDirectory(tmp_path / name) for name in "ab")
    for here in (one, two):  # the joint epsilon counts the runs: it is not a fact of the data
        said = json.loads((here.release / "privacy.json").read_text())
        alone = {**said, "joint": None, "statement": ""}
        (here.release / "privacy.json").write_text(json.dumps({**alone, "joint": {"runs": 1, "epsilon": None}}))
        write_report(here)
    assert (one.release / "report.html").read_bytes() == (two.release / "report.html").read_bytes()


def stranger(root, texts, labels, settings="name: x\n", said=None):
    """A release of somebody else's making."""
    here = RunDirectory(root, is_private=False)
    with here.locked():
        n = len(texts)
        population = Population(0, of_texts(texts), np.arange(n) % len(labels), np.full(n, -1), np.ones(n, bool))
        here.save(population, labels)
    (here.release / "config.yaml").write_text(settings)
    (here.release / "privacy.json").write_bytes(as_json(said or unprotected("none", [], {})))
    return here


def test_hostile_texts_labels_and_settings_stay_text(tmp_path):
    labels = [{"a": EVIL}, {"a": "</style><b>"}]
    settings = f"name: {json.dumps(EVIL)}\ndata: {{schema: {{file: [1]}}}}\n"
    said = {**unprotected("none", [Charge(EVIL, 0.0)], {}), "statement": EVIL + "\ud800", "status": EVIL}
    here = stranger(tmp_path, [EVIL, f"{EVIL} more", "</script>", ""], labels, settings, said)
    (here.release / "metrics.jsonl").write_text(
        json.dumps({"iteration": 0, "metric": EVIL, "final": True, EVIL: EVIL, "b": 1})
    )
    content = write_report(here).read_text()
    elements = check_safe(content)
    assert EVIL in elements.text  # all of it is shown, as it stands
    assert "<b>&lt;" not in content and "alert(1)</script>" not in content


@pytest.mark.parametrize(
    "said",
    [[], {}, {"status": "DP"}, {"epsilon": 1, "charges": [], "status": "DP"},
     {**unprotected("none", [], {}), "charges": [{"name": "a", "sigma": -1, "receipt_sha256": None}]},
     {**unprotected("none", [], {}), "epsilon": "1"}],
)  # fmt: skip
def test_a_strange_statement_is_refused_in_one_line(tmp_path, said):
    here = stranger(tmp_path, ["a"], [{}])
    (here.release / "privacy.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"this is no statement of this version of dpsyn\.$"):
        write_report(here)


def test_a_run_without_a_population_and_a_damaged_one_are_refused(runs, tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    here = stranger(tmp_path / "empty", ["a"], [{}])
    shutil.rmtree(here.release / "iterations")
    shutil.copytree(runs / "images", tmp_path / "damaged")
    with (tmp_path / "damaged/release/iterations/001/samples.parquet").open("ab") as file:
        file.write(b"\0")
    for root, message in (("empty", "nothing is there to report on yet"), ("damaged", "this checkpoint is damaged")):
        assert cli.main(["report", str(tmp_path / root)]) == 2
        assert message in capsys.readouterr().err


def test_an_interrupted_run_says_so_and_shows_what_is_there(runs, tmp_path):
    shutil.copytree(runs / "texts", tmp_path / "run")
    here = open_run(tmp_path / "run")
    last = here.iterations()[-1]
    shutil.rmtree(here.checkpoint(last).parent)
    for path in (here.votes / f"{last:03d}.parquet", here.release / "synthetic.parquet"):
        path.unlink()
    said = json.loads((here.release / "privacy.json").read_text())
    said["charges"][last - 1]["receipt_sha256"] = None
    (here.release / "privacy.json").write_text(json.dumps({**said, "status": "INCOMPLETE"}))
    elements = check_safe(write_report(here).read_text())
    assert "INCOMPLETE: the run stopped early." in elements.text
    assert f"{len(said['charges']) - 1} of {len(said['charges'])}" in elements.text
    assert "not made yet" in elements.text


def test_lost_draws_are_red_and_counted(runs, tmp_path):
    shutil.copytree(runs / "images", tmp_path / "run")
    here = open_run(tmp_path / "run")
    said = json.loads((here.release / "privacy.json").read_text())
    charge = {key: value for key, value in said["charges"][0].items() if key != "receipt_sha256"}
    said |= {"lost_draws": 1, "lost_charges": [charge]}
    (here.release / "privacy.json").write_text(json.dumps(said))
    content = write_report(here).read_text()
    assert content.count('class="lost"') == 1 and "lost draw" in Elements(content).text
    together = exact_epsilon([Charge(**charge)] * (len(said["charges"]) + 1), said["delta"], "add_remove")
    assert format_epsilon(together) in content


def test_a_statement_without_any_release_is_reported(tmp_path):
    here = RunDirectory(tmp_path)
    shutil.copytree(stranger(tmp_path / "other", ["a", "b"], [{}]).release, here.release)
    settings = Settings(epsilon=1, delta=1e-5)
    said = statement(settings, Budget((), 0.0, 1e-5, "add_remove"), [], [], {}, None, [], None)
    (here.release / "privacy.json").write_bytes(said)
    assert "No private record was read" in Elements(write_report(here).read_text()).text


def test_of_many_rows_it_says_what_was_looked_at(tmp_path, monkeypatch):
    monkeypatch.setitem(facts.LOOKED_AT, "texts", 50)
    here = stranger(tmp_path, [f"text {i} {'word ' * 200}" for i in range(20_000)], [{"l": str(i)} for i in range(300)])
    content = write_report(here).read_text()
    assert len(content) < 3_000_000
    assert "Looked at: 50 rows, drawn at random, of 20,000." in Elements(content).text


@pytest.mark.parametrize(("different", "said"), [(10, False), (7, True)])
def test_many_copies_come_with_advice(tmp_path, different, said):
    here = stranger(tmp_path, [f"text {i % different}" for i in range(10)], [{}])
    assert ("Copies teach nothing new" in Elements(write_report(here).read_text()).text) == said


def test_a_table_tells_what_its_noise_hides(runs):
    page = (runs / "cells/release/report.html").read_text()
    text = Elements(page).text
    assert "Noise of a bar: ±" in text and "any of the 435 pairs" in text
    assert "200 of 300 rows, drawn at random." in text and 'id="rows-words"' in page
    assert ("was not learned" in text) == ("(tables)" not in (runs / "cells/release/privacy.json").read_text())


def test_variations_that_are_their_parents_are_counted(tmp_path):
    here = stranger(tmp_path, ["one", "two", "three", "four"], [{}])
    parents, survivors = np.array([0, 1, 1, 2, 3]), np.array([True, True, False, False, False])
    texts = of_texts(["one", "two", "two", "another", "four"])
    with here.locked():
        here.save(Population(1, texts, np.zeros(5, int), parents, survivors), [{}])
    assert lineage.unchanged(facts.read(here)) == (1, pytest.approx(2 / 3))
    assert "66.7% of the variations of iteration 1 are their parents" in Elements(write_report(here).read_text()).text


def test_rows_that_are_looked_at_are_of_all_labels_though_these_take_turns():
    assert facts.some_of(5, 9).tolist() == list(range(5)) and len(facts.some_of(0, 9)) == 0
    found = facts.some_of(4000, 400)
    assert (np.diff(found) > 0).all() and np.array_equal(found, facts.some_of(4000, 400))
    assert np.bincount(found % 10).min() > 20


def test_the_released_counts_of_a_table_are_those_of_its_receipt(runs):
    from dpsyn.report.contents import columns

    released = facts.read(open_run(runs / "cells"))
    bars = {each.column: each for each in columns(released)}
    assert len(bars) == 31
    assert all(each.synthetic.sum() == pytest.approx(1) for each in bars.values())
    label = bars["diagnosis"]
    receipt = released.cells[1]
    assert label.noisy is not None
    table = pd.read_parquet(runs / "cells/release/marginals.parquet")
    counts = table[(table["release"] == 1) & (table["column_1"] == "diagnosis")]["noisy_count"].to_numpy()
    np.testing.assert_allclose(label.noisy / label.noisy.sum(), counts / counts.sum())
    assert label.band[0] / label.noisy[0] == pytest.approx(1.96 * receipt.charge.sigma / counts[0])


def test_streams_and_trees_follow_the_parents(runs):
    released = facts.read(open_run(runs / "images"))
    found = stream(released.lineages)
    np.testing.assert_allclose(found.shares.sum(0), 1)
    ancestors = np.arange(len(released.lineages[0].labels))
    for each in released.lineages[1:]:
        ancestors = ancestors[each.parents]
    counts = np.bincount(ancestors)
    np.testing.assert_allclose(found.shares[0, -1], counts.max() / len(ancestors))
    chains = trees(released)
    assert 1 <= len(chains) <= 10
    for chain in chains:
        assert chain[0].iteration == 0 and [link.iteration for link in chain] == sorted(
            link.iteration for link in chain
        )
    last = released.votes[len(released.lineages) - 1]
    assert chains[0][-1].votes is not None and chains[0][-1].votes <= last.votes.max() * 1000


@pytest.mark.parametrize(("n", "shape"), [(150, (9, 16)), (40, (4, 9)), (1, (0, 0)), (0, (0, 0))])
def test_a_map_sorts_each_image_once_by_what_they_differ_in_most(n, shape):
    from dpsyn.report.contents import mapped

    rng = np.random.default_rng(0)
    along, across = rng.permutation(n), 0.1 * rng.permutation(n)
    directions = np.linalg.qr(rng.normal(size=(20, 2)))[0].T
    places = mapped((np.stack([along, across], 1) @ directions + 5).astype(np.float32))
    assert places.shape == shape and len(np.unique(places)) == places.size
    if n > 1:
        columns, within = np.diff(along[places].mean(0)), np.diff(across[places], axis=0)
        assert ((columns > 0).all() or (columns < 0).all()) and ((within > 0).all() or (within < 0).all())


def test_the_page_of_images_has_a_map_of_them(runs):
    page = (runs / "images/release/report.html").read_text()
    assert "A map of" in page and page.count("<image ") > 12


def test_vital_signs_out_of_range_come_with_advice(runs):
    released = facts.read(open_run(runs / "images"))
    bad = {"iteration": 1, "effective": 0.1, "top_tenth": 1, "signal_to_noise": 0.2, "ancestors": 3.0}
    faint = dataclasses.replace(released, numbers=({**bad, "labels_without_votes": 2.0},))
    text = Elements(rendered(faint).decode()).text
    loud = dataclasses.replace(released, numbers=({**bad, "signal_to_noise": float("inf")},))
    assert "Signal to noise" not in Elements(rendered(loud).decode()).text
    for advice in ("the noise decides more", "too few records for this noise", "descend from a few"):
        assert advice in text


def test_the_private_page_is_private_and_holds_what_is_private(runs, tmp_path, capsys):
    shutil.copytree(runs / "texts", tmp_path / "run")
    before = (tmp_path / "run/release/report.html").read_bytes()
    assert cli.main(["report", str(tmp_path / "run"), "--private"]) == 0
    path = tmp_path / "run/private/report.html"
    assert capsys.readouterr().out.strip() == str(path)
    assert path.stat().st_mode & 0o077 == 0
    text = check_safe(path.read_text()).text
    assert "Do not share it." in text and "lengths" in text and "Time by phase" in text
    assert (tmp_path / "run/release/report.html").read_bytes() == before
    assert b"Time by phase" not in before


def test_expanding_writes_the_page_again(runs, tmp_path):
    shutil.copytree(runs / "images", tmp_path / "run")
    assert cli.main(["expand", str(tmp_path / "run"), "--rows", "90"]) == 0
    assert "90 synthetic images" in (tmp_path / "run/release/report.html").read_text()


FRAMES = """<!doctype html><title>?</title>{frames}<script>onload = function () {{
document.title = [].map.call(document.querySelectorAll("iframe"), function (each) {{
  each.contentDocument.querySelectorAll("details").forEach(function (part) {{ part.open = true; }});
  return each.contentWindow.innerWidth + " " + each.contentDocument.documentElement.scrollWidth; }}).join(", "); }};
</script>"""


def seen(path, profile):
    """What a browser makes of a page, as HTML, and what it says."""
    own = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
    own += ["--enable-logging=stderr", "--disable-background-networking", "--window-size=1500,900", path.as_uri()]
    ended = subprocess.run([BROWSER, *own], capture_output=True, text=True, timeout=120, check=True)
    return ended.stdout, ended.stderr


@pytest.mark.skipif(BROWSER is None, reason="no headless browser is installed")
@pytest.mark.parametrize("name", ["images", "texts", "cells"])
def test_in_a_browser_nothing_complains_asks_or_overflows(runs, tmp_path, name):
    """What the policy forbids, and what a script does wrong, is said on the console."""
    page = runs / name / "release/report.html"
    made, said = seen(page, tmp_path / "profile")
    assert "CONSOLE" not in said
    assert name == "cells" or re.search(r'id="shown"[^>]*>\d+ shown<', made)
    if browsed := re.search(r"([\d,]+) of ([\d,]+) (images|texts) of all iterations and the final data", made):
        assert int(browsed[1].replace(",", "")) <= int(browsed[2].replace(",", ""))
    assert (browsed is None) == (name == "cells")
    here = shutil.copytree(runs / name, tmp_path / "run")
    assert cli.main(["report", str(here), "--private"]) == 0
    page = here / "private/report.html"  # all that the public one says, and more
    frame = '<iframe width="{}" height="900" srcdoc="{}"></iframe>'
    frames = "".join(frame.format(width, html.escape(page.read_text())) for width in (380, 1400))
    (tmp_path / "frames.html").write_text(FRAMES.format(frames=frames))
    made, said = seen(tmp_path / "frames.html", tmp_path / "profile")
    widths = re.findall(r"(\d+) (\d+)", re.search("<title>(.*?)</title>", made)[1])
    assert [inner for inner, _ in widths] == ["380", "1400"]
    assert all(int(scrolled) <= int(inner) for inner, scrolled in widths)


def test_columns_with_the_label_are_held_against_what_the_second_release_asked(runs):
    from dpsyn.report.contents import with_label

    released = facts.read(open_run(runs / "cells"))
    pairs = with_label(released)
    assert [pair.column for pair in pairs[:2]] == ["mean radius", "mean texture"] and len(pairs) == 30
    receipt = released.cells[2]
    assert sum(pair.deviations.size for pair in pairs) == len(receipt.votes)
    sums, start = [], 0
    for pair in pairs:
        sums.append(receipt.votes[start : start + pair.deviations.size].sum())
        start += pair.deviations.size
    expected = (np.mean(sums) - np.array(sums)) / receipt.charge.sigma
    np.testing.assert_allclose([pair.deviations.sum() for pair in pairs], expected, atol=1e-9)
    other = dataclasses.replace(released.promise, records=20)  # then other cells follow, and the receipt is not of them
    assert with_label(dataclasses.replace(released, promise=other)) == []
    assert with_label(dataclasses.replace(released, settings={**released.settings, "privacy": {"epsilon": "1"}})) == []
