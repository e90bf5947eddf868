"""Plain webdataset reads the shards without any code of ours."""

from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_prep.packing import Pack
from data_prep.shard_writer import ShardWriter
from pipeline.data.dataset import PackedDataset
from tests.data.folders import finish_folder


@pytest.mark.parametrize("labelled", [False, True])
def test_webdataset_reads_what_the_dataset_reads(tmp_path: Path, labelled: bool) -> None:
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path, 0, 40_000, "data") as writer:
        for number in range(30):
            ids = rng.integers(0, 2**32, rng.integers(2, 900), dtype=np.uint32)
            cut = int(rng.integers(1, len(ids)))
            documents = [
                {"id": f"ä{number}-{start}", "start": 0, "end": end - start, "tokens": end - start, "origin": {}}
                for start, end in ((0, cut), (cut, len(ids)))
            ]
            mask = rng.integers(0, 2, len(ids), dtype=np.uint8) if labelled else None
            writer.write(Pack(ids, np.array([0, cut, len(ids)], np.int32), mask, documents))
    dataset = PackedDataset(finish_folder(tmp_path, writer.entries))
    tars = [str(tmp_path / entry.tar_name) for entry in writer.entries]
    assert len(tars) > 2
    rows = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert [row["__key__"] for row in rows] == [f"00000-{number:06d}" for number in range(30)]
    for number, row in enumerate(rows):
        sample = dataset[number]
        assert row["__key__"] == sample.key and row["meta.json"] == sample.meta
        pairs = [("input_ids", np.uint32), ("cu_seqlens", np.int32), *([("loss_mask", np.uint8)] if labelled else [])]
        for name, dtype in pairs:
            assert row[f"{name}.npy"].dtype == dtype
            np.testing.assert_array_equal(row[f"{name}.npy"], getattr(sample, name))
        assert ("loss_mask.npy" in row) == labelled == (sample.loss_mask is not None)
