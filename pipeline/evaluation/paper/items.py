"""The AHN paper's tables and figures (arXiv 2510.07318 v2): the commands that redraw each, on GPUs and scaled down.

Paths under /shared are examples, those of launchers/recipes/experiments/qwen2.5-3b-gdn.yaml. Everything else runs in
the repository's folder as it stands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation import published
from pipeline.evaluation.paper import results
from pipeline.evaluation.suite import Table

RUN = "/shared/ahn/qwen2.5-3b-gdn"
BASE = "/shared/models/Qwen2.5-3B-Instruct"
TRAIN = "python launchers/submit.py --config launchers/recipes/experiments/qwen2.5-3b-gdn.yaml --gpu_memory 80"
FETCH = "python launchers/run_eval.py --data_root /shared/benchmarks --fetch"
ON_GPUS = f"torchrun --nproc_per_node 8 -- launchers/run_eval.py --model {RUN}/adapter --output {RUN}/paper"
LM_EVAL_ON_GPUS = (
    "torchrun --nproc_per_node 8 -m pipeline.evaluation.lm_eval_run --data_root /shared/benchmarks --model ahn"
)
LM_EVAL = f"{LM_EVAL_ON_GPUS} --output_path {RUN}/paper"
LONG_VARIANTS = "--yarn_factor 8 --variants full_yarn window compressive_max compressive_mean ahn"
ABLATION = (
    "deepspeed --num_gpus 8 launchers/train.py --config launchers/recipes/qwen2.5-7b-gdn.yaml --ds_config "
    "ds_configs/zero2.json --model /shared/models/Qwen2.5-7B-Instruct --data /shared/ahn/chatqa2"
)

DEMO = "make demo"
DEMO_WINDOW = "--num_sink_tokens 32 --window_size 96"
ON_CPU = (
    f"torchrun --nproc_per_node 2 -- launchers/run_eval.py --model runs/demo/train/adapter {DEMO_WINDOW} "
    "--data runs/demo/data/heldout --max_documents 16 --pieces_per_document 1"
)
CPU_LM_EVAL = (
    "python -m pipeline.evaluation.lm_eval_run --data_root runs/benchmarks --model ahn --model_args "
    "pretrained=runs/demo/train/adapter --limit 2 --output_path runs/paper"
)
CPU_TRAIN = (
    "deepspeed --num_gpus 2 launchers/train.py --config launchers/recipes/demo.yaml --ds_config ds_configs/zero2.json "
    "--model .cache/smollm2-135m --data runs/demo/data/train --output runs/paper"
)
CPU_HELDOUT = (
    "torchrun --nproc_per_node 2 -- launchers/run_eval.py --suites heldout --data runs/demo/data/heldout "
    f"--max_documents 16 --pieces_per_document 1 {DEMO_WINDOW}"
)


@dataclass(frozen=True)
class PaperItem:
    """A table or figure.

    `measures` read what scaled-down runs have left in the repository; None of one that was not run. `published`: what
    the paper has, as far as its figures are repeated here. `note`: what the commands leave open.
    """

    title: str
    on_gpus: Sequence[str]
    on_cpu: Sequence[str]
    measures: Sequence[Callable[[Path], Table | None]]
    published: Sequence[Table] = ()
    note: str = ""


ITEMS = (
    PaperItem(
        title="Table: LV-Eval and InfiniteBench at 128k tokens",
        on_gpus=(
            TRAIN,
            f"{FETCH} lveval infinitebench",
            f"{ON_GPUS}/lveval --suites lveval --data_root /shared/benchmarks --chat --tasks '*_128k' "
            f"--max_context 256000 {LONG_VARIANTS}",
            f"{ON_GPUS}/infinitebench --suites infinitebench --data_root /shared/benchmarks --chat --tasks "
            f"longbook_qa_eng longbook_qa_chn --max_context 128000 {LONG_VARIANTS}",
        ),
        on_cpu=(
            DEMO,
            "python launchers/run_eval.py --data_root runs/benchmarks --fetch lveval",
            f"torchrun --nproc_per_node 2 -- launchers/run_eval.py --model runs/demo/train/adapter {DEMO_WINDOW} "
            "--suites lveval --data_root runs/benchmarks --tasks factrecall_en_16k --max_examples 2 "
            "--variants full window ahn --output runs/paper/lveval",
        ),
        measures=(results.read_benchmarks,),
        published=(
            published.averages_table("lveval"),
            published.protocol_table("lveval"),
            published.averages_table("infinitebench"),
            published.protocol_table("infinitebench"),
        ),
        note="7B and 14B: their recipe and model in the same experiment. The prompts are longer than the base's 32,768 "
        "positions, which bound full attention alone: --yarn_factor 8 covers 262,144.",
    ),
    PaperItem(
        title="Table: LongBench",
        on_gpus=(
            f"{FETCH} longbench",
            f"{LM_EVAL} --tasks paper_longbench --apply_chat_template --model_args "
            f"pretrained={RUN}/adapter,num_sink_tokens=128,window_size=8064",
            f"{LM_EVAL} --tasks paper_longbench --apply_chat_template --model_args pretrained={BASE}",
        ),
        on_cpu=(
            DEMO,
            "python launchers/run_eval.py --data_root runs/benchmarks --fetch longbench",
            f"{CPU_LM_EVAL}/longbench --tasks longbench_hotpotqa",
        ),
        measures=(results.read_longbench,),
        published=(published.longbench_table(), published.protocol_table("longbench")),
        note="The paper's window here is 8,064: with 32,640 most of these documents would never be evicted. The last "
        "command is the base with full attention. All 21 sets as lm-eval has them: --tasks longbench.",
    ),
    PaperItem(
        title="Table: RULER, needles in 128k tokens",
        on_gpus=(
            f"{FETCH} ruler",
            f"{LM_EVAL} --tasks niah_single_1,niah_single_2,niah_single_3 --model_args "
            f"pretrained={RUN}/adapter --metadata "
            "'{\"max_seq_lengths\": [131072]}'",
            f"{ON_GPUS}/needles --suites needles --needles.tasks single --needles.lengths 65536 131072",
        ),
        on_cpu=(
            DEMO,
            f"{ON_CPU} --suites needles --output runs/paper/needles",
            "python launchers/recall_study.py --output runs/recall",
        ),
        measures=(results.read_needles, results.read_recall),
        published=(published.niah_table(),),
        note="Suite `needles` reports needles in the window and evicted ones apart. The recall study trains a tiny "
        "base that needs evicted facts, and says how many each memory cell recalls.",
    ),
    PaperItem(
        title="Table: ablations of the training objective and of the windows",
        on_gpus=(
            f"{ABLATION} --output /shared/ahn/7b-gdn",
            f"{ABLATION} --output /shared/ahn/7b-cross-entropy --train.loss ce",
            f"{ABLATION} --output /shared/ahn/7b-fixed-window --window.budgets 1024",
            f"{LM_EVAL_ON_GPUS} --tasks paper_longbench --apply_chat_template --model_args "
            "pretrained=/shared/ahn/7b-cross-entropy/adapter,num_sink_tokens=128,window_size=8064",
        ),
        on_cpu=(
            DEMO,
            f"{CPU_TRAIN}/cross-entropy --train.loss ce",
            f"{CPU_HELDOUT} --model runs/paper/cross-entropy/adapter --output runs/paper/cross-entropy/evaluation",
            f"{CPU_TRAIN}/drawn-windows --window.budgets '[128,256,512]' --window.sinks '[0,32,64]'",
            f"{CPU_HELDOUT} --model runs/paper/drawn-windows/adapter --output runs/paper/drawn-windows/evaluation",
        ),
        measures=(results.read_ablations,),
        published=(published.longbench_ablations_table(),),
        note="The last command on GPUs, for each of the three adapters. Scaled down, the evaluation has the window "
        "that two of them were trained with; windows are drawn for adapters that are to serve many.",
    ),
    PaperItem(
        title="Figure: complexity and memory against the context",
        on_gpus=(
            *(f"python -m pipeline.metrics.accounting --model qwen2.5-{size}" for size in ("3b", "7b", "14b")),
            f"{ON_GPUS}/efficiency --suites efficiency --efficiency.lengths 16384 32768 65536 131072",
        ),
        on_cpu=(
            "python -m pipeline.metrics.accounting --model qwen2.5-3b",
            "make bench",
            DEMO,
            f"{ON_CPU} --suites efficiency --output runs/paper/efficiency",
        ),
        measures=(results.read_efficiency, results.read_decoding),
        published=(results.account_table(),),
        note="The accounting follows the paper's formulas and needs no GPU, so its figures are given in full. The "
        "paper's 7B FLOPs do not follow its own formula.",
    ),
    PaperItem(
        title="Figure: perplexity over a long document",
        on_gpus=(
            f"python launchers/prepare.py --inputs '/shared/pg19/*.txt' --tokenizer {BASE} "
            "--packing none --seq_len 65536 --output /shared/ahn/pg19",
            f"{ON_GPUS}/heldout --suites heldout --data /shared/ahn/pg19 --max_documents 16 --pieces_per_document 1",
        ),
        on_cpu=(DEMO, f"{ON_CPU} --suites heldout --output runs/paper/heldout"),
        measures=(results.read_heldout,),
        note="PG19's books as text files, fetched before. Past the base's max_position_embeddings `full` reads "
        "positions that it was not trained on. Scaled down: Python's own sources.",
    ),
    PaperItem(
        title="Figure: gradients that show what the memory keeps",
        on_gpus=(f"{ON_GPUS}/probing --suites probing --data /shared/ahn/heldout",),
        on_cpu=(DEMO, f"{ON_CPU} --suites probing --output runs/paper/probing"),
        measures=(results.read_probing,),
        note="The coloured text itself is in report.html.",
    ),
)
