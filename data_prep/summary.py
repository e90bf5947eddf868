"""A finished folder in a few lines, as prepare.py prints it."""

from collections import Counter

from pipeline.data.shard_format import MANIFEST_NAME, Manifest
from pipeline.errors import escape_controls

MAX_LISTED = 5


def describe(manifest: Manifest) -> str:
    """What the folder holds and what was left out of it, in a few lines."""
    totals = manifest.totals
    used = totals["tokens"] / (totals["samples"] * manifest.seq_len)
    lines = [
        f"{totals['tokens']:,} tokens of {totals['documents']:,} documents in {totals['samples']:,} samples "
        f"of up to {manifest.seq_len:,} ({used:.1%} used, {len(manifest.shards)} shards); fingerprint "
        f"{manifest.sha256[:12]}",
        f"{totals['cut_documents']:,} documents cut, {totals['duplicate_documents']:,} have the text of an earlier one",
    ]
    if len(manifest.sources) > 1:
        lines += [
            f"  {source['name']}: {source['totals']['tokens']:,} tokens, {source['totals']['samples']:,} samples"
            for source in manifest.sources
        ]
    skipped = {reason: count for reason, count in manifest.dropped["files"].items() if count}
    if skipped:
        lines.append("files left out: " + describe_counts(skipped))
    if manifest.dropped["documents"]:
        lines.append("documents dropped: " + describe_counts(manifest.dropped["documents"]))
        affected = [entry for entry in manifest.inputs if entry["dropped"]]
        for entry in affected[:MAX_LISTED]:
            lines.append(f"  {entry['source']}/{entry['name']}: {describe_counts(entry['dropped'])}")
        if len(affected) > MAX_LISTED:
            lines.append(f"  and {len(affected) - MAX_LISTED} more files: see {MANIFEST_NAME}")
    ignored: Counter[str] = Counter()
    for entry in manifest.inputs:
        ignored.update(entry.get("ignored_fields", {}))
    if ignored:
        lines.append(f"fields of conversations that were not read: {describe_counts(ignored)}")
    return "\n".join(map(escape_controls, lines))


def describe_counts(counts: dict[str, int]) -> str:
    """`3 empty, 1 invalid_utf8`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
