"""The chunked KL against autograd on whole logits, forward + backward: vocabulary 49,152, hidden 576, fp32."""

import torch
import torch.nn.functional as F

from pipeline.losses.chunked_kl import chunked_forward_kl
from pipeline.losses.output_head import OutputHead
from tests.benchmarks.timing import compare, report


def run(num_positions: tuple[int, ...] = (512, 1024, 2048)) -> list[dict]:
    head = torch.randn(49152, 576) * 0.05
    rows = []
    for count in num_positions:
        student, teacher = torch.randn(count, 576, requires_grad=True), torch.randn(count, 576)
        weights = torch.full((count,), 1 / count)

        def ours(student=student, teacher=teacher, weights=weights):
            chunked_forward_kl(student, teacher, OutputHead(head), weights).backward()

        def whole(student=student, teacher=teacher):
            log_q, log_p = F.log_softmax(student @ head.T, -1), F.log_softmax(teacher @ head.T, -1)
            F.kl_div(log_q, log_p, log_target=True, reduction="batchmean").backward()

        mine, theirs, ratio = compare(ours, whole, repeats=3)
        rows.append({"positions": count, "ours_s": mine, "whole_logits_s": theirs, "ratio": ratio})
    return report("forward KL, forward + backward", rows)
