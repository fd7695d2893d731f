"""Nothing that the stage privacy masks is on a page or in a history, wherever its document ended."""

import json

import pytest
from report_corpus import MENU, make_config, page_text, prepare, report

from data_prep.report.history import find_history
from maxlm.errors import DataError

# Everything that must not be seen is in one of these words.
WORD = "zanzibar"
MAIL, OTHER, PHONE = f"{WORD}.kept@mail.com", f"{WORD}.short@mail.com", "+1 650 253 0000"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    kept = f"{page_text(60)}\n{MENU} {MAIL}\nWrite to {MAIL} or to {WORD}.two@mail.com today."
    made = make_config(
        tmp_path_factory.mktemp("private"),
        {
            "kept": kept,
            "near-kept": kept.replace(" have been ", " had been ", 1),
            "short-one": f"Few words: {OTHER}",
            f"of/{WORD}.name@mail.com": page_text(61),
            f"of/{WORD}.early@mail.com": "Few words as well",
            "with-phone": f"{page_text(62)}\nCall {PHONE} today.",
        },
        rules={"profiles": {"default": {"gopher": {"min_words": 20}, "c4": {"lines": {"min_words": 3}}}}},
        privacy={"phone": "drop"},
    )
    prepare(made)
    return made


def test_the_page_shows_placeholders(config):
    page, found = report(config)
    everything = page + json.dumps(found)
    assert WORD not in everything and PHONE not in everything and "650 253" not in everything
    samples = {
        (stage["stage"], group["kind"], sample["id"]): "".join(f"{kind}{text}" for kind, text in sample["text"])
        for stage in found["samples"]
        for group in stage["groups"]
        for sample in group["samples"]
    }
    assert "Few words: [EMAIL]" in samples["rules", "dropped", "pages/short-one"]
    assert "*[PHONE]= today" in samples["privacy", "dropped", "pages/with-phone"]
    (masked,) = (text for (stage, kind, _), text in samples.items() if (stage, kind) == ("privacy", "changed"))
    assert "+[EMAIL]" in masked
    assert found["masked"] and "Personal data are masked" in page
    types = next(one["values"] for one in found["columns"] if one["name"] == "privacy")
    assert types[0][0] == "email" and types[0][2] > 1


@pytest.mark.parametrize(
    "document",
    ["kept", "near-kept", "short-one", *(f"of/{WORD}.{name}@mail.com" for name in ("name", "early")), "with-phone"],
)
def test_a_history_shows_placeholders(config, document):
    (found,) = find_history(config, document)
    assert WORD not in json.dumps(found) and "650 253" not in json.dumps(found)
    if found["kept"]:
        assert found["output"]["tokens"] > 100
    elif document == "with-phone":
        assert found["why_not"] == "dropped by privacy: phone found"
    if document.startswith("of/"):
        # It is found by the id that the shards have, too.
        assert find_history(config, found["id"]) == [found] and "/hidden-" in found["id"]


def test_an_unknown_id_names_no_value(config):
    with pytest.raises(DataError, match=r"near it are 'pages/of/\[EMAIL\]'") as raised:
        find_history(config, "of/z")
    assert WORD not in str(raised.value)
