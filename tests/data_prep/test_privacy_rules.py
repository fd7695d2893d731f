"""What is found, on the labelled sample and at the edges; the sample's levels are the least that rules must reach."""

import sys

import privacy_sample
import pytest
from privacy_sample import TYPES, sample, score

from data_prep.privacy.find import everywhere, find_all, in_texts, scanner
from data_prep.privacy.hide import Hiding
from data_prep.privacy.rules import PRECEDENCE, Span, resolved
from data_prep.text.texts import Texts

LEVEL = 0.95
SCAN = scanner(("CN", "US"))


def found(text, **options):
    data = text.encode()
    return [(kind, data[start:stop].decode()) for kind, start, stop in find_all([text], **options)[0]]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_type_reaches_the_stated_level_on_the_sample(seed):
    scores, _ = score(list(sample(seed, 2000)), find_all)
    assert set(scores) == set(TYPES)
    low = {name: one for name, one in scores.items() if one.precision < LEVEL or one.recall < LEVEL}
    assert not low
    assert all(one.found + one.missed >= 100 for one in scores.values())


def test_the_sample_is_the_same_each_time_and_can_fail():
    cases = list(sample(3, 400))
    assert cases == list(sample(3, 400)) != list(sample(4, 400))
    nothing, _ = score(cases, lambda texts: [[] for _ in texts])
    assert all(one.recall == one.precision == 0 for one in nothing.values())
    everything, errors = score(cases, lambda texts: [[("email", 0, len(text.encode()))] for text in texts])
    assert everything["email"].precision < 0.1 and len(errors) > 400


def test_the_tool_prints_the_table(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["privacy_sample.py", "--cases", "200"])
    privacy_sample.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["type", "precision", "recall", "found", "wrong", "missed"]
    assert [line.split()[0] for line in lines[1:]] == list(TYPES)


def test_leads_miss_nothing_that_the_patterns_match():
    """The scan, against all patterns at all places."""
    for case in sample(5, 1500):
        data = case.text.encode()
        spans = [rule.check(data, match) for rule in SCAN.rules for match in rule.regex.finditer(data)]
        slow = {(span.type, span.start, span.stop) for span in resolved(filter(None, spans))}
        fast = {
            (span.type, span.start, span.stop) for span in in_texts(SCAN, Texts.from_strings([case.text])).get(0, [])
        }
        assert slow <= fast, case


def test_texts_of_one_scan_do_not_touch_each_other():
    """No value goes over a text's end, and no word of the text before counts."""
    texts = [
        "电话 6465550",
        "123",
        "ISBN ",
        "13812345678",
        "a@b",
        ".com",
        "version ",
        "93.184.216.34",
        "",
        "\0a@bb.cn\0",
    ]
    alone = [find_all([text])[0] for text in texts]
    assert find_all(texts) == alone
    assert [len(spans) for spans in alone] == [0, 0, 0, 1, 0, 0, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("13812345678@fensol.com", [("email", "13812345678@fensol.com")]),
        ("to=ket%40fensol.com&x=1", [("email", "ket%40fensol.com")]),
        ("href=3Dket@fensol.com, a%2Cvex@fensol.com", [("email", "ket@fensol.com"), ("email", "vex@fensol.com")]),
        ("'ket@fensol.com.'", [("email", "ket@fensol.com")]),
        ("https://ket:n0t4W0rd!@fensol.com/x", [("secret", "n0t4W0rd!")]),
        ("https://ket:${PASSWORD}@fensol.com/x", []),
        ("请在13812345678、13987654321中选一个", [("phone", "13812345678"), ("phone", "13987654321")]),
        ("+1 212 555 2368 2019", [("phone", "+1 212 555 2368")]),
        ("+1 212 555 2368 - 2019", [("phone", "+1 212 555 2368")]),
        ("+999999999999 is none", []),
        ("*** 212-555-2368 *** 212-555-2368x15", [("phone", "212-555-2368"), ("phone", "212-555-2368x15")]),
        ("Fax-212-555-2368, id-212-555-2368", [("phone", "212-555-2368")]),
        ("212-555-2368x", []),
        ("doi 10.1000/212-555-2368", []),
        ("case #2125552368 phone 2125552368", [("phone", "2125552368")]),
        ("11010519491231002X 110105194912310021", [("identity", "11010519491231002X")]),
        ("110105 19491231 002x", [("identity", "110105 19491231 002x")]),
        ("4111 1111 1111 1111 is one digit", []),
        ("card 4012-8888-8888-1881 4012888888881882", [("card", "4012-8888-8888-1881")]),
        ("x = 4012888888881881 * y", []),
        ("AKIAIOSFODNN7EXAMPLE", []),
        (f"AccountKey={'aB3/' * 21}aB==;x", [("secret", f"{'aB3/' * 21}aB==")]),
        (
            "bot 110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsawQ!",
            [("secret", "110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsawQ")],
        ),
        ("xAKIAIOSFODNN7QWERTZU", []),
        ("-----BEGIN RSA PRIVATE KEY-----\n(in base64)\n-----END RSA PRIVATE KEY-----", []),
        ("[2a02:4d3b:8d2f::8c35]:80, 2a02:4d3b:8d2f::8c35: done", [("ipv6", "2a02:4d3b:8d2f::8c35")] * 2),
        ("at 20:15:2010 and 2015:10:20:30", []),
        ("3.1.2.4. Introduction\n93.184.216.34 - - [10/Oct]", [("ipv4", "93.184.216.34")]),
        ("Chrome/93.184.216.34 93.184.216.34.55 193.184.216.340", []),
    ],
)
def test_edges(text, expected):
    assert found(text) == expected


def test_a_private_key_that_is_cut_off_is_found_as_far_as_it_goes():
    line = "MIIEowIBAAKCAQEAx7Qn8vKzmSgQ5p0Z8VfDk2Yb7wJtLr4NcXhE1uGaPo6sTiBy"
    key = f"-----BEGIN PRIVATE KEY-----\n{line}\n{line}"
    assert found(f"{key}\n\nthe rest, and more") == [("secret", key)]


def test_other_regions():
    text = "Telephone: 020 7946 0958"
    assert found(text, phone_regions=["GB"]) == [("phone", "020 7946 0958")]
    assert found(text, phone_regions=["US"]) == []
    assert found("138 1234 5678 and 212-555-2368", phone_regions=["US"]) == [("phone", "212-555-2368")]
    assert found("+44 20 7946 0958", phone_regions=[]) == [("phone", "+44 20 7946 0958")]


def test_of_spans_that_overlap_the_type_of_precedence_stays():
    spans = [
        Span("phone", 0, 12),
        Span("email", 8, 30),
        Span("card", 40, 50),
        Span("card", 40, 56),
        Span("phone", 56, 60),
    ]
    assert resolved(spans) == [Span("email", 8, 30), Span("card", 40, 56), Span("phone", 56, 60)]
    assert resolved([]) == [] and PRECEDENCE.index("secret") == 0


def test_thousands_of_values_in_one_document_are_found_again():
    """More than one automaton holds."""
    numbers = [f"138{n:08d}" for n in range(10_000_000, 10_002_500)]
    text = "\n".join(numbers) + "\n" + "\n".join(f"order {number}" for number in reversed(numbers))
    data = text.encode()
    (spans,) = in_texts(SCAN, Texts.from_strings([text])).values()
    assert len(spans) == len(numbers)
    again = everywhere({"text": data, "url": b"/" + numbers[-1].encode()}, {"text": spans, "url": []})
    assert len(again["text"]) == 2 * len(numbers) and [(s.start, s.stop) for s in again["url"]] == [(1, 12)]


def test_nothing_is_found_where_values_were_masked(pipeline):
    hiding = Hiding(pipeline(privacy={}))
    masked = [hiding.text(case.text) for case in sample(6, 600)]
    assert sum("[" in text for text in masked) > 200
    assert not any(find_all(masked))


def test_what_is_published_is_hidden(pipeline):
    config = pipeline(privacy={"phone": "off"})
    hiding = Hiding(config)
    literal = r'{"id": "web/ket@fensol.com", "n": 13812345678, "text": "ket@fensol.com \"13812345678\""}'
    hidden = hiding.id("web/ket@fensol.com")
    expected = rf'{{"id": "{hidden}", "n": 13812345678, "text": "[EMAIL] \"13812345678\""}}'
    assert hiding.json(literal.encode()) == expected.encode()
    assert hiding.id("web/a") == "web/a" and hiding.id("web/ket@fensol.com").startswith("web/hidden-")
    assert Hiding(pipeline()).json(literal.encode()) == literal.encode()
