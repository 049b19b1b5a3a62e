#!/usr/bin/env python3
"""KL divergence against bytes read per token, for exact levels and for adaptive precision, under several budgets.

usage: benches/kl_curve.py DOLLOP TEXT OUT.svg [BUDGET …]

Runs `dollop eval` on the default model, token by token (as when answering), and compares with the model at its highest
level. Prints the points as a Markdown table and draws them. A point of adaptive precision should lie on or below the
lower hull of the exact points of its budget; the table shows by how much.
"""

import json
import subprocess
import sys

DOLLOP, TEXT, OUT = sys.argv[1:4]
BUDGETS = sys.argv[4:] or ["106M", "112M", "120M"]
MODEL = "models/smollm2-moe.gguf"
EXACT = ["exact:2", "exact:3", "exact:4"]
ADAPTIVE = [("adaptive:2.5", 2), ("adaptive:3", 2), ("adaptive:4", 2), ("adaptive:3.5", 3), ("adaptive:4", 3)]


def point(budget, precision, floor=None):
    command = [DOLLOP, "eval", "--text", TEXT, "--against", MODEL, "--ctx", "512", "--chunk", "1"]
    command += ["--memory", budget, "--precision", precision, "--json"]
    command += ["--floor", str(floor)] if floor else []
    out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    stream = out["stream"]
    return stream["bytes_per_token"] / 1e6, out["kl_mean"], stream["mean_bits"], stream["hit_rate"]


def hull(points, x):
    """The lower convex hull of exact points at x; beyond them, the nearest end (never negative slopes to nowhere)."""
    points = sorted(points)
    lower = []
    for p in points:
        while len(lower) > 1 and (lower[-1][1] - lower[-2][1]) * (p[0] - lower[-2][0]) >= (p[1] - lower[-2][1]) * (
            lower[-1][0] - lower[-2][0]
        ):
            lower.pop()
        lower.append(p)
    if x <= lower[0][0]:
        return lower[0][1]
    for a, b in zip(lower, lower[1:]):
        if x <= b[0]:
            return a[1] + (b[1] - a[1]) * (x - a[0]) / (b[0] - a[0])
    return lower[-1][1]


def draw(rows):
    width, height, left, bottom = 760, 420, 60, 40
    most = max(r[3] for r in rows)
    top = max(r[4] for r in rows) * 1.05
    x = lambda mb: left + (width - left - 20) * mb / most
    y = lambda kl: height - bottom - (height - bottom - 20) * kl / top
    colours = dict(zip(BUDGETS, ["#c0392b", "#2471a3", "#1e8449", "#7d3c98", "#b9770e"]))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<path d="M{left} 20V{height - bottom}H{width - 20}" stroke="black" fill="none"/>',
        f'<text x="{width / 2}" y="{height - 8}">MB read per token</text>',
        f'<text transform="rotate(-90 14 {height / 2})" x="14" y="{height / 2}">mean KL to the highest level</text>',
    ]
    for i in range(6):
        out.append(f'<text x="{x(most * i / 5) - 8:.0f}" y="{height - bottom + 16}">{most * i / 5:.1f}</text>')
        out.append(f'<text x="{left - 34}" y="{y(top * i / 5) + 4:.0f}">{top * i / 5:.2f}</text>')
    for i, budget in enumerate(BUDGETS):
        c = colours[budget]
        exact = sorted((r[3], r[4]) for r in rows if r[0] == budget and r[2] is None)
        line = " ".join(f"{x(mb):.1f},{y(kl):.1f}" for mb, kl in exact)
        out.append(f'<polyline points="{line}" stroke="{c}" fill="none" stroke-dasharray="4 3"/>')
        for mb, kl in exact:
            out.append(f'<rect x="{x(mb) - 4:.1f}" y="{y(kl) - 4:.1f}" width="8" height="8" fill="{c}"/>')
        for r in rows:
            if r[0] == budget and r[2] is not None:
                fill = "white" if r[2] == 2 else c
                out.append(f'<circle cx="{x(r[3]):.1f}" cy="{y(r[4]):.1f}" r="4" fill="{fill}" stroke="{c}"/>')
        out.append(f'<text x="{width - 300}" y="{36 + 18 * i}" fill="{c}">{budget}: ■ exact, ○ floor 2, ● floor 3</text>')
    with open(OUT, "w") as f:
        f.write("\n".join(out + ["</svg>"]) + "\n")


rows = []
print("| budget | precision | floor | MB/token | mean KL | bits | hits | below the hull by |")
print("|---|---|---:|---:|---:|---:|---:|---:|")
for budget in BUDGETS:
    exact = []
    for precision, floor in [(p, None) for p in EXACT] + ADAPTIVE:
        mb, kl, bits, hits = point(budget, precision, floor)
        rows.append((budget, precision, floor, mb, kl))
        below = ""
        if floor is None:
            exact.append((mb, kl))
        else:
            below = f"{hull(exact, mb) - kl:.4f}"
        print(f"| {budget} | {precision} | {floor or ''} | {mb:.3f} | {kl:.4f} | {bits:.2f} | {hits:.2f} | {below} |", flush=True)
draw(rows)
