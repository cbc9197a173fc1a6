"""How rows land: in input order, whole or not at all, in each format."""

from __future__ import annotations

import csv
import datetime as dt
import json
import os
import random
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel, Field, NaiveDatetime, computed_field, field_serializer
from upath import UPath

from airflow_llm_provider.documents import formats
from airflow_llm_provider.documents.formats import MissingExtra, UnknownFormat
from airflow_llm_provider.documents.output import RowDoesNotFit, RowWriter, read_dead_letters
from airflow_llm_provider.engine.output_type import OutputType


class Party(BaseModel):
    name: str
    share: float | None = None


class Invoice(BaseModel):
    number: str
    kind: Literal["invoice", "credit"]
    cents: int
    paid: bool | None
    seller: Party
    buyers: list[Party]
    tags: list[str]
    extra: dict[str, str]
    either: int | str


SCHEMA = Invoice.model_json_schema()


def data(n: int) -> dict[str, Any]:
    return {
        "number": f"№{n}",
        "kind": "invoice",
        "cents": n,
        "paid": None if n % 2 else True,
        "seller": {"name": 'a, "b"\nc', "share": None},
        "buyers": [{"name": "x", "share": 1}, {"name": "y", "share": 0.5}],
        "tags": ["t"],
        "extra": {"k": "v"},
        "either": "7",
    }


def row(n: int, **fields: Any) -> dict[str, Any]:
    return {
        "document_id": f"d{n}",
        "outcome": "answered",
        "data": data(n),
        "reading": None,
        "model": "m",
        "stop_reason": "end_turn",
        "input_tokens": n,
        "output_tokens": 2,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "cost_usd": "0.000012" if n else None,
        "reused": False,
        "attempts": 1,
        "repairs": 0,
        "latency_s": 0.25,
        "trace_id": "t" * 32,
        **fields,
    }


def letter(n: int) -> dict[str, Any]:
    return {
        "document_id": f"d{n}",
        "uri": None,
        "reason": "refused",
        "error_class": "Refused",
        "message": "no",
    }


def lines(path: str | Path) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_bytes().splitlines()]


def test_rows_are_written_in_input_order_whatever_order_they_came_in(tmp_path):
    order = list(range(300))
    random.Random(7).shuffle(order)
    writer = RowWriter(tmp_path / "out/rows.jsonl", schema=SCHEMA)
    for n in order:
        if n % 10 == 3:
            writer.add_dead_letter(n, letter(n))
        elif n % 10 != 4:  # never asked
            writer.add(n, row(n))
    written = writer.publish({"documents": 300})
    assert [r["document_id"] for r in lines(written.output)] == [
        f"d{n}" for n in range(300) if n % 10 not in (3, 4)
    ]
    assert [r["document_id"] for r in lines(written.dead_letters)] == [f"d{n}" for n in range(3, 300, 10)]
    assert lines(written.output)[0] == row(0)
    manifest = json.loads(Path(written.manifest).read_bytes())
    assert manifest["documents"] == 300
    assert manifest["rows"] == written.rows == 240
    assert manifest["output"] == written.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "rows.dead_letters.jsonl",
        "rows.jsonl",
        "rows.manifest.json",
        "rows.schema.json",
    ]


def test_a_list_becomes_one_row_per_item(tmp_path):
    writer = RowWriter(tmp_path / "rows.jsonl", list_type=True)
    writer.add(1, [row(1, item=0, data="x"), row(1, item=1, data="y")])
    writer.add(0, [])
    written = writer.publish({})
    assert [(r["document_id"], r["item"], r["data"]) for r in lines(written.output)] == [
        ("d1", 0, "x"),
        ("d1", 1, "y"),
    ]
    assert written.rows == 2


def test_a_document_has_exactly_one_outcome(tmp_path):
    with RowWriter(tmp_path / "rows.jsonl") as writer:
        writer.add(0, row(0))
        with pytest.raises(ValueError, match="exactly one"):
            writer.add_dead_letter(0, letter(0))
        with pytest.raises(RowDoesNotFit, match="typo"):
            writer.add(1, row(1, typo=1))
        writer.add_dead_letter(1, letter(1))


def test_the_schema_beside_the_rows_describes_them(tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    writer = RowWriter(tmp_path / "rows.jsonl", schema=SCHEMA)
    writer.add(0, row(0))
    written = writer.publish({})
    schema = json.loads(Path(written.schema).read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    (landed_row,) = lines(written.output)
    validator.validate(landed_row)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**landed_row, "data": {**landed_row["data"], "seller": {"name": 7}}})


def test_csv_has_a_column_a_field_and_json_where_it_nests(tmp_path):
    writer = RowWriter(tmp_path / "rows.csv", schema=SCHEMA)
    writer.add(0, row(0))
    writer.add(1, row(1, data=None))
    with open(writer.publish({}).output, newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert first["data.number"] == "№0"
    assert json.loads(first["data.seller"]) == data(0)["seller"]
    assert json.loads(first["data.tags"]) == ["t"]
    assert (first["data.paid"], first["reused"], first["cost_usd"]) == ("true", "false", "")
    assert second["data.number"] == ""
    assert second["cost_usd"] == "0.000012"
    assert list(first)[:3] == ["document_id", "outcome", "data.number"]
    assert list(first)[-1] == "trace_id"


def test_plain_answers_are_one_data_column(tmp_path):
    for name in ("rows.csv", "rows.parquet", "rows.jsonl"):
        writer = RowWriter(tmp_path / name)
        writer.add(0, row(0, data="an answer,\nof two lines"))
        writer.publish({})
    with open(tmp_path / "rows.csv", newline="") as file:
        assert next(csv.DictReader(file))["data"] == "an answer,\nof two lines"
    assert pq.read_table(tmp_path / "rows.parquet")["data"].to_pylist() == ["an answer,\nof two lines"]


def test_parquet_is_typed_by_the_schema(tmp_path):
    writer = RowWriter(tmp_path / "rows.parquet", schema=SCHEMA)
    for n in range(3):
        writer.add(n, row(n))
    writer.add(3, row(3, data=None))
    table = pq.read_table(writer.publish({}).output)
    types = {field.name: field.type for field in table.schema.field("data").type}
    assert types["number"] == types["kind"] == pa.string()
    assert types["cents"] == pa.int64()
    assert types["paid"] == pa.bool_()
    assert types["seller"] == pa.struct([("name", pa.string()), ("share", pa.float64())])
    assert pa.types.is_list(types["buyers"])
    assert types["extra"] == types["either"] == pa.string()
    rows = table.to_pylist()
    assert rows[1]["data"]["buyers"] == [{"name": "x", "share": 1.0}, {"name": "y", "share": 0.5}]
    assert json.loads(rows[1]["data"]["extra"]) == {"k": "v"}
    assert rows[1]["cost_usd"] == Decimal("0.000012")
    assert rows[0]["cost_usd"] is None
    assert rows[3]["data"] is None
    assert [r["document_id"] for r in rows] == ["d0", "d1", "d2", "d3"]


class Node(BaseModel):
    name: str
    children: list[Node] = []


def test_a_type_that_holds_itself_ends_in_json_text(tmp_path):
    writer = RowWriter(tmp_path / "rows.parquet", schema=Node.model_json_schema())
    value = Node(name="a", children=[Node(name="b")]).model_dump()
    writer.add(0, row(0, data=value))
    (written,) = pq.read_table(writer.publish({}).output).to_pylist()
    assert written["data"]["name"] == "a"


def test_a_value_that_no_column_holds_is_refused_when_it_comes_not_when_all_is_paid(tmp_path):
    large = {**data(0), "cents": 2**70}
    with RowWriter(tmp_path / "rows.parquet", schema=SCHEMA) as writer:
        with pytest.raises(RowDoesNotFit, match=r"(?s)'d0'.*64-bit"):
            writer.add(0, row(0, data=large))
        writer.add_dead_letter(0, letter(0))
        assert writer.publish({}).dead == 1
    writer = RowWriter(tmp_path / "rows.jsonl", schema=SCHEMA)
    writer.add(0, row(0, data=large))
    assert lines(writer.publish({}).output)[0]["data"]["cents"] == 2**70


def deep(levels):
    made = []
    for _ in range(levels):
        made = [made]
    return made


class Dated(BaseModel):
    day: dt.date
    at: dt.datetime
    local: NaiveDatetime
    total: Decimal
    net: Annotated[Decimal, Field(max_digits=8, decimal_places=2)]
    label: str = Field(serialization_alias="labelOut", validation_alias="labelIn")
    number: int

    @computed_field
    @property
    def doubled(self) -> Decimal:
        return self.total * 2

    @field_serializer("number")
    def written(self, value: int):
        return f"no. {value}"


DATED = OutputType(Dated)
TEXT = """{"day": "2026-03-04", "at": "2026-03-04T05:06:07.5+02:00", "local": "2026-03-04T05:06:07",
    "total": 1234567890.10, "net": 12.50, "labelIn": "a", "number": 7}"""


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_every_format_holds_what_the_answer_is_written_as(tmp_path, name):
    with RowWriter(tmp_path / name, schema=DATED.item_schema) as writer:
        plain = DATED.dump(DATED.parse(TEXT))
        writer.add(0, row(0, data=plain))
        writer.publish({})
    assert plain["doubled"] == "2469135780.20"
    if name.endswith("jsonl"):
        found = json.loads((tmp_path / name).read_text())["data"]
    elif name.endswith("csv"):
        with open(tmp_path / name, newline="") as file:
            [read] = csv.DictReader(file)
        found = {key.removeprefix("data."): value for key, value in read.items() if key.startswith("data.")}
    else:
        table = pq.read_table(tmp_path / name)
        types = {field.name: str(field.type) for field in table.schema.field("data").type}
        assert types == {
            "day": "date32[day]",
            "at": "timestamp[us, tz=UTC]",
            "local": "timestamp[us]",
            "total": "decimal128(38, 18)",
            "net": "decimal128(8, 2)",
            "labelOut": "string",
            "number": "string",
            "doubled": "decimal128(38, 18)",
        }
        [found] = table.column("data").to_pylist()
        assert found.pop("at") == dt.datetime(2026, 3, 4, 3, 6, 7, 500_000, dt.UTC)
        assert found.pop("local") == dt.datetime.fromisoformat(plain["local"])
        assert found.pop("day") == dt.date(2026, 3, 4)
        assert found == {name: convert(plain[name]) for name, convert in PARQUET.items()}
        return
    assert found == plain


PARQUET = {"total": Decimal, "net": Decimal, "labelOut": str, "number": str, "doubled": Decimal}


def test_a_time_without_an_offset_is_taken_as_utc(tmp_path):
    schema = {"type": "object", "properties": {"at": {"type": "string", "format": "date-time"}}}
    with RowWriter(tmp_path / "rows.parquet", schema=schema) as writer:
        writer.add(0, row(0, data={"at": "2026-03-04T05:06:07"}))
        writer.publish({})
    [found] = pq.read_table(tmp_path / "rows.parquet").column("data").to_pylist()
    assert found["at"] == dt.datetime(2026, 3, 4, 5, 6, 7, tzinfo=dt.UTC)


@pytest.mark.parametrize("number", ["1" + "0" * 20, "0.0000000000000000001", "1e400", "NaN"])
def test_a_decimal_that_its_column_cannot_hold_to_the_digit_is_refused(tmp_path, number):
    schema = OutputType(Decimal).item_schema
    with RowWriter(tmp_path / "rows.parquet", schema=schema) as writer, pytest.raises(RowDoesNotFit):
        writer.add(0, row(0, data=number))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
@pytest.mark.parametrize("bad", ["half \ud800", ["half", "\udfff"], deep(1500)], ids=["text", "list", "deep"])
def test_what_no_file_can_hold_is_refused_when_it_comes_and_the_others_are_written(tmp_path, name, bad):
    kinds: dict[str, Any] = {"type": "object", "properties": {"a": {}}}
    with RowWriter(tmp_path / name, schema=kinds) as writer:
        writer.add(0, row(0, data={"a": "fine"}))
        with pytest.raises(RowDoesNotFit, match=r"^document 'd1': "):
            writer.add(1, row(1, data={"a": bad}))
        writer.add_dead_letter(1, {"document_id": "d1", "reply": "half \ud800", "complaints": ["\udfff"]})
        landed = writer.publish({})
    assert (landed.rows, landed.dead) == (1, 1)
    [letter] = read_dead_letters(tmp_path / name)
    assert letter == {"document_id": "d1", "reply": "half \\ud800", "complaints": ["\\udfff"]}


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_field_without_a_column_is_refused_and_not_lost(tmp_path, name, nested):
    inner = {"type": "object", "properties": {"a": {"type": "string"}}}
    schema = {"type": "object", "properties": {"in": inner}} if nested else inner
    surplus = {"a": "x", "b": "y"}
    if nested and name == "rows.csv":
        return  # a nested object is JSON text, which holds everything
    with (
        RowWriter(tmp_path / name, schema=schema) as writer,
        pytest.raises(RowDoesNotFit, match=r"its schema does not name|something that its schema"),
    ):
        writer.add(0, row(0, data={"in": surplus} if nested else surplus))


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_type_that_takes_more_fields_is_one_column_of_json(tmp_path, name):
    class Open(BaseModel, extra="allow"):
        a: str

    output = OutputType(Open)
    with RowWriter(tmp_path / name, schema=output.item_schema) as writer:
        writer.add(0, row(0, data=output.dump(output.parse('{"a": "x", "b": "y"}'))))
        writer.publish({})
    if name == "rows.csv":
        with open(tmp_path / name, newline="") as file:
            [read] = csv.DictReader(file)
    else:
        [read] = pq.read_table(tmp_path / name).to_pylist()
    assert json.loads(read["data"]) == {"a": "x", "b": "y"}


def test_parquet_is_written_in_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "ROW_GROUP_ROWS", 10)
    writer = RowWriter(tmp_path / "rows.parquet")
    for n in range(25):
        writer.add(n, row(n, data="x"))
    assert pq.ParquetFile(writer.publish({}).output).num_row_groups == 3


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_no_rows_at_all_is_a_file_without_rows(tmp_path, name):
    written = RowWriter(tmp_path / name, schema=SCHEMA).publish({})
    assert written.rows == 0
    assert written.dead_letters is None
    if name.endswith("parquet"):
        assert pq.read_table(written.output).num_rows == 0


def test_a_folder_takes_parts_and_a_shard_beside_a_file_its_own_name(tmp_path):
    assert RowWriter(f"{tmp_path}/out/", part="part-3").publish({}).output == f"{tmp_path}/out/part-3.jsonl"
    assert (
        RowWriter(f"{tmp_path}/out/", folder_format="csv").publish({}).output == f"{tmp_path}/out/part-0.csv"
    )
    assert RowWriter(tmp_path / "rows.jsonl", part="part-3").publish({}).output == str(
        tmp_path / "rows.part-3.jsonl"
    )


def test_a_format_that_cannot_be_written_is_refused_before_anything_is_paid(tmp_path, monkeypatch):
    with pytest.raises(UnknownFormat, match="xlsx"):
        RowWriter(tmp_path / "rows.xlsx")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        RowWriter(tmp_path / "file/rows.jsonl")
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"airflow-provider-llm\[parquet\]"):
        RowWriter(tmp_path / "rows.parquet")


def test_an_error_leaves_the_earlier_files_and_nothing_behind(tmp_path, monkeypatch):
    first = RowWriter(tmp_path / "rows.jsonl")
    first.add(0, row(0, data="old"))
    first.publish({})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for fails in ("airflow_llm_provider.documents.output.row_schema", "os.fsync"):
        second = RowWriter(tmp_path / "rows.jsonl")
        second.add(0, row(0, data="new"))
        second.add_dead_letter(1, letter(1))

        def fail(*args: Any) -> Any:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(fails, fail)
            with pytest.raises(OSError, match="No space"):
                second.publish({})
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_manifest_is_put_in_place_last(tmp_path, monkeypatch):
    order = []
    replace = Path.replace

    def watched(self: Path, target: Any) -> Path:
        order.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    writer = RowWriter(tmp_path / "rows.jsonl")
    writer.add_dead_letter(0, letter(0))
    writer.publish({})
    assert order == ["rows.jsonl", "rows.schema.json", "rows.dead_letters.jsonl", "rows.manifest.json"]


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("rows.jsonl", "'rows.jsonl' is a folder"),
        ("other.jsonl", "'other.manifest.json' is a folder"),
        ("file/rows.jsonl", "exists"),
        ("file/below/rows.jsonl", "Not a directory"),
        ("x" * 240 + ".jsonl", "too long"),
    ],
)
def test_files_that_cannot_be_written_there_are_refused_before_anything_is_paid(tmp_path, output, says):
    (tmp_path / "rows.jsonl").mkdir()
    (tmp_path / "other.manifest.json").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match=rf"(?s){says}.*output=") as raised:
        RowWriter(tmp_path / output)
    assert raised.value.strerror
    assert sorted(tmp_path.iterdir()) == before


def test_the_longest_name_that_is_taken_is_written(tmp_path):
    for length in range(255, 0, -1):
        try:
            writer = RowWriter(tmp_path / f"{'x' * length}.jsonl")
        except OSError:
            continue
        break
    writer.add(0, row(0))
    writer.add_dead_letter(1, letter(1))
    assert writer.publish({}).rows == 1


def test_what_fails_while_files_are_put_in_place_leaves_nothing_aside(tmp_path):
    writer = RowWriter(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        writer.publish({})
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_runs_that_publish_in_one_folder_at_once_do_not_mix_their_files(tmp_path):
    output = tmp_path / "rows.jsonl"
    for _ in range(60):
        one, two = RowWriter(output), RowWriter(output)
        one.add(0, row(0))
        one.add_dead_letter(1, letter(1))
        two.add(0, row(0))
        two.add(1, row(1))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda writer: writer.publish({}), (one, two)))
        manifest = json.loads((tmp_path / "rows.manifest.json").read_bytes())
        assert len(lines(output)) == manifest["rows"]
        assert (manifest["dead_letters"] is not None) == (tmp_path / "rows.dead_letters.jsonl").exists()


def test_dead_letters_of_an_earlier_run_do_not_outlive_it(tmp_path):
    first = RowWriter(tmp_path / "rows.jsonl")
    first.add_dead_letter(0, letter(0))
    assert Path(str(first.publish({}).dead_letters)).exists()
    second = RowWriter(tmp_path / "rows.jsonl")
    second.add(0, row(0))
    second.publish({})
    assert not (tmp_path / "rows.dead_letters.jsonl").exists()


def test_leftovers_of_a_killed_process_are_removed_when_they_are_old(tmp_path):
    old, young, other = (
        tmp_path / name for name in (".rows.jsonl.1.tmp", ".rows.jsonl.2.tmp", ".x.jsonl.1.tmp")
    )
    for path in (old, young, other):
        path.write_text("x")
    os.utime(old, (1, 1))
    os.utime(other, (1, 1))
    RowWriter(tmp_path / "rows.jsonl").publish({})
    assert [path.exists() for path in (old, young, other)] == [False, True, True]


def test_files_have_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "usual").write_text("")
    written = RowWriter(tmp_path / "rows.jsonl").publish({})
    assert Path(written.output).stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_object_storage_takes_every_format(tmp_path, name):
    folder = UPath(f"memory://output-{name}/out")
    writer = RowWriter(folder / name, schema=SCHEMA, spool_dir=tmp_path)
    writer.add(1, row(1))
    writer.add_dead_letter(0, letter(0))
    written = writer.publish({"x": 1})
    assert written.output == f"{folder}/{name}"
    names = {"rows.dead_letters.jsonl", name, "rows.manifest.json", "rows.schema.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / name).stat().st_size > 0
    assert list(read_dead_letters(folder / name)) == list(read_dead_letters(str(folder))) == [letter(0)]
    again = RowWriter(str(folder / name), schema=SCHEMA)
    again.publish({})
    assert not (folder / "rows.dead_letters.jsonl").exists()


def test_object_storage_is_untouched_by_a_failure(tmp_path, monkeypatch):
    output = UPath("memory://output-failing/out/rows.jsonl")
    writer = RowWriter(output)
    writer.add(0, row(0))
    monkeypatch.setattr("airflow_llm_provider.documents.output.row_schema", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.publish({})
    assert not output.parent.exists()


def test_dead_letters_are_read_back_from_the_output_its_folder_or_their_file(tmp_path):
    for part in (0, 1):
        writer = RowWriter(f"{tmp_path}/out/", part=f"part-{part}")
        writer.add_dead_letter(0, letter(part))
        writer.publish({})
    clean = RowWriter(tmp_path / "clean.jsonl").publish({})
    both = [letter(0), letter(1)]
    assert list(read_dead_letters(f"{tmp_path}/out/")) == both
    assert list(read_dead_letters(tmp_path / "out/part-1.jsonl")) == both[1:]
    assert list(read_dead_letters(tmp_path / "out/part-1.dead_letters.jsonl")) == both[1:]
    assert list(read_dead_letters(clean.output)) == []
    with pytest.raises(FileNotFoundError):
        list(read_dead_letters(tmp_path / "never.jsonl"))


def test_rows_may_come_from_many_threads(tmp_path):
    writer = RowWriter(tmp_path / "rows.jsonl")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: writer.add(n, row(n)), range(500)))
    written = writer.publish({})
    assert [r["document_id"] for r in lines(written.output)] == [f"d{n}" for n in range(500)]
    assert written.rows == 500


@pytest.mark.skipif(sys.gettrace() is not None, reason="coverage counts as memory")
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_memory_stays_flat_over_many_rows(tmp_path, name):
    tracemalloc.start()
    try:
        writer = RowWriter(tmp_path / name)
        for n in range(1_000):
            writer.add(n, row(n, data="x" * 10_000))
        writer.publish({})
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
