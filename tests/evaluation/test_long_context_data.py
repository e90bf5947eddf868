"""Files of the long-context suites: official zips, unpacked folders, damage, and what is missing."""

import json
import zipfile

import pytest

from pipeline.data.shard_format import DataError
from pipeline.errors import UserError
from pipeline.evaluation.infinitebench.tasks import INFINITEBENCH
from pipeline.evaluation.long_context.data_files import locate_tasks
from pipeline.evaluation.lveval.tasks import LVEVAL

TASK = {task.name: task for task in (*LVEVAL.tasks, *INFINITEBENCH.tasks)}
CMRC = TASK["cmrc_mixup_16k"]


def rows(*answers):
    made = [{"context": "书", "input": "谁？", "answers": [answer], "length": 3} for answer in answers]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)


def write_zip(root, members, name="cmrc_mixup.zip", compression=zipfile.ZIP_DEFLATED):
    (root / "lveval").mkdir(exist_ok=True)
    with zipfile.ZipFile(root / "lveval" / name, "w", compression) as archive:
        for member, text in members.items():
            archive.writestr(member, text)
    return root / "lveval" / name


def answers(root, task=CMRC, suite=LVEVAL):
    (data,) = locate_tasks(suite, [task], root)
    return [example.references[0] for example in data]


@pytest.mark.parametrize("member", ["cmrc_mixup/cmrc_mixup_16k.jsonl", "cmrc_mixup_16k.jsonl"])
def test_reads_an_official_archive_where_it_lies(tmp_path, member):
    archive = write_zip(tmp_path, {member: rows("张三", "李四"), "cmrc_mixup_16k.jsonl.bak": rows("x")})
    assert answers(tmp_path) == ["张三", "李四"]
    assert list((tmp_path / "lveval").iterdir()) == [archive]  # nothing was extracted


def test_unpacked_files_come_before_the_archive(tmp_path):
    write_zip(tmp_path, {"cmrc_mixup/cmrc_mixup_16k.jsonl": rows("zip")})
    (tmp_path / "lveval/cmrc_mixup").mkdir()
    (tmp_path / "lveval/cmrc_mixup/cmrc_mixup_16k.jsonl").write_text(rows("folder"))
    assert answers(tmp_path) == ["folder"]
    (tmp_path / "lveval/cmrc_mixup_16k.jsonl").write_text(rows("file"))
    assert answers(tmp_path) == ["file"]


def test_infinitebench_is_plain_files(tmp_path):
    (tmp_path / "infinitebench").mkdir()
    row = {"id": 0, "context": "sand", "input": "Key?", "answer": ["71432"], "options": []}
    (tmp_path / "infinitebench/passkey.jsonl").write_text(json.dumps(row))
    assert answers(tmp_path, TASK["passkey"], INFINITEBENCH) == ["71432"]


def test_members_of_an_archive_decide_nothing(tmp_path):
    (tmp_path / "cmrc_mixup_16k.jsonl").write_text(rows("outside"))
    bad = ["../cmrc_mixup_16k.jsonl", "/cmrc_mixup_16k.jsonl", "cmrc_mixup/../../cmrc_mixup_16k.jsonl"]
    write_zip(tmp_path, dict.fromkeys(bad, rows("escaped")))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="lacks LV-Eval's cmrc_mixup_16k"):
        answers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_rows_are_left_out_and_counted(tmp_path):
    good = rows("张三")
    bad = '{"context": \n\n[1]\n' + rows(None) + good.replace('"input"', '"Input"')
    write_zip(tmp_path, {"cmrc_mixup_16k.jsonl": (good + bad).encode() + b'"\xff"\n' + rows("李四").encode()})
    (data,) = locate_tasks(LVEVAL, [CMRC], tmp_path)
    for _ in range(2):  # a second pass reports the same
        assert [(example.id, example.references) for example in data] == [
            ("cmrc_mixup_16k/1", ("张三",)),
            ("cmrc_mixup_16k/8", ("李四",)),
        ]
        assert [row.line for row in data.bad_rows] == [2, 4, 5, 6, 7]
    reasons = [row.reason for row in data.bad_rows]
    assert reasons[0].startswith("it is not JSON") and reasons[1] == "it must be a JSON object, found list"
    assert reasons[3] == "'input' must be a string, found nothing" and "utf-8" in reasons[4]


def test_a_file_without_a_good_row_is_an_error(tmp_path):
    archive = write_zip(tmp_path, {"cmrc_mixup_16k.jsonl": "{}\n[]\n"})
    with pytest.raises(DataError) as caught:
        answers(tmp_path)
    assert str(caught.value) == (
        f"cmrc_mixup_16k.jsonl in {archive} has no row of cmrc_mixup_16k: 2 rows are bad, the first because 'answers' "
        f"must be a list of strings, found None; fetch it again: python launchers/run_eval.py --fetch "
        f"lveval --data_root {tmp_path}"
    )
    write_zip(tmp_path, {"cmrc_mixup_16k.jsonl": ""})
    with pytest.raises(DataError, match="0 rows are bad; fetch it again"):
        answers(tmp_path)


def test_all_that_is_missing_is_named_with_the_command(tmp_path):
    write_zip(tmp_path, {"cmrc_mixup_16k.jsonl": rows("x")})
    with pytest.raises(UserError) as caught:
        locate_tasks(LVEVAL, [CMRC, TASK["cmrc_mixup_32k"], TASK["factrecall_en_16k"]], tmp_path)
    assert str(caught.value) == (
        f"--data_root {tmp_path} lacks LV-Eval's cmrc_mixup_32k, factrecall_en_16k (looked in {tmp_path}/lveval); get "
        f"them with: python launchers/run_eval.py --fetch lveval --data_root {tmp_path}"
    )
    with pytest.raises(UserError, match=r"lacks LV-Eval's hotpotwikiqa_mixup_16k, .* and 48 more \(looked in"):
        locate_tasks(LVEVAL, LVEVAL.tasks, tmp_path)


def test_no_zip_at_all(tmp_path):
    (tmp_path / "lveval").mkdir()
    (tmp_path / "lveval/cmrc_mixup.zip").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match=r"cmrc_mixup\.zip is not a zip archive .*--fetch lveval"):
        answers(tmp_path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_archive_is_one_line(tmp_path, compression):
    archive = write_zip(tmp_path, {"cmrc_mixup_16k.jsonl": rows("张三") * 50}, compression=compression)
    raw = bytearray(archive.read_bytes())
    for at in range(60, 80):
        raw[at] ^= 0xFF
    archive.write_bytes(raw)
    with pytest.raises(DataError, match=r"cmrc_mixup_16k\.jsonl in .* is damaged \(.*fetch it again"):
        answers(tmp_path)


def test_an_unreadable_file_is_one_line(tmp_path):
    (tmp_path / "lveval").mkdir()
    (tmp_path / "lveval/cmrc_mixup_16k.jsonl").write_text(rows("x"))
    (data,) = locate_tasks(LVEVAL, [CMRC], tmp_path)
    (tmp_path / "lveval/cmrc_mixup_16k.jsonl").unlink()
    with pytest.raises(DataError, match=r"cmrc_mixup_16k\.jsonl cannot be read: No such file"):
        list(data)
