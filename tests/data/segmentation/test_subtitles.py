"""Subtitles as people have them: never a wrong pair, nothing uncounted."""

from vits_trainer.data.segmentation.subtitles import Cue, parse_subtitles


def shown(content: str) -> list[tuple[float, float, str, str | None]]:
    cues = parse_subtitles(content)
    return [(*cue.span, cue.text, cue.rejection and str(cue.rejection.reason)) for cue in cues]


def test_subrip() -> None:
    content = (
        "\ufeff1\r\n00:00:01,500 --> 00:00:02,000 X1:1 X2:2\r\n{\\an8}<i>One</i> &amp;\r\ntwo.\r\n\r\n"
        "2\r\n01:02:03,4 --> 01:02:05,25\r\n- Who?\r\n- Me.\r\n"
    )
    assert shown(content) == [(1.5, 2.0, "One & two.", None), (3723.4, 3725.25, "Who? Me.", None)]


def test_webvtt() -> None:
    content = (
        "WEBVTT - a talk\nKind: captions\n\nSTYLE\n::cue { color: red }\n\nNOTE\n00:00.000 --> 00:09.000 is no cue\n\n"
        "intro\n00:01.000 --> 00:02.000 align:start position:0%\n<v.loud Ann Lee>Good <00:01.500><c.x>day</c></v>\n\n"
        "00:02.000 --> 00:03.000\n<v Ann>Yes.\n<v Bob>No.\n"
    )
    first, second = parse_subtitles(content)
    assert (first.span, first.text, first.speaker, first.rejection) == ((1.0, 2.0), "Good day", "Ann Lee", None)
    assert (second.span, second.text, second.speaker, second.rejection) == ((2.0, 3.0), "Yes. No.", None, None)


def test_cues_out_of_order_are_sorted() -> None:
    assert shown("00:00:05,000 --> 00:00:06,000\nb\n\n00:00:01,000 --> 00:00:02,000\na\n") == [
        (1.0, 2.0, "a", None),
        (5.0, 6.0, "b", None),
    ]


def test_all_cues_that_overlap_are_rejected_and_copies_but_one() -> None:
    times = [("01", "03", "a"), ("02", "04", "b"), ("05", "20", "long"), ("06", "07", "c"), ("08", "09", "d")]
    times += [("20", "21", "e"), ("20", "21", "e"), ("22", "23", "f")]
    content = "\n\n".join(f"00:00:{start},000 --> 00:00:{end},000\n{text}" for start, end, text in times)
    reasons = {text: reason for *_, text, reason in shown(content) if text != "e"}
    assert reasons == dict.fromkeys(["a", "b", "long", "c", "d"], "overlapping-cues") | {"f": None}
    assert [reason for *_, text, reason in shown(content) if text == "e"] == [None, "duplicate"]


def test_times_that_touch_within_50_ms_do_not_overlap() -> None:
    cues = shown("00:00:01,000 --> 00:00:02,040\na\n\n00:00:02,000 --> 00:00:03,000\nb\n")
    assert [reason for *_, reason in cues] == [None, None]


def test_unusable_cues_are_counted() -> None:
    content = (
        "1\n00:00:03,000 --> 00:00:02,000\nback\n\n2\n00:00:04,000 -> 00:00:05,000\nshort arrow\n\n"
        "3\n00:00:06,000 --> never\nno end\n\n4\n00:00:07,000 --> 00:00:08,000\n[Music] ♪♪\n\n"
        "5\n00:00:09,000 --> 00:00:10,000\n\n6\n00:00:11,000 --> 00:00:12,000\n[laughs] Fine.\n"
    )
    reasons = sorted(str(reason) for *_, reason in shown(content))
    assert reasons == ["None", *["empty-text"] * 2, *["malformed-row"] * 3]
    assert [text for *_, text, reason in shown(content) if reason is None] == ["Fine."]


def test_cues_without_blank_lines_between_them_are_separate() -> None:
    content = "1\n00:01.000 --> 00:02.000\na\n2\n00:03.000 --> 00:04.000\nb\n00:05.000 --> 00:06.000\nc"
    assert shown(content) == [(1.0, 2.0, "a", None), (3.0, 4.0, "b", None), (5.0, 6.0, "c", None)]


def test_an_empty_file_has_no_cues() -> None:
    for content in ("", "\ufeff\n\n", "WEBVTT\n"):
        assert parse_subtitles(content) == list[Cue]()
