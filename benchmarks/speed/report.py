"""The suite's records: where they are kept, and what they come to, as a table and a figure."""

import json
import statistics

RATES = {"wall": "a second", "cpu": "a CPU second"}


def read(path):
    return json.loads(path.read_text()) if path.exists() else []


def write(path, records):
    """One record a line; the old file stays whole until the new one is."""
    new = path.with_suffix(".new")
    new.write_text("[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n")
    new.replace(path)


def newest(records):
    """The last record of each row, on the machine of the last record of all."""
    found = {record["row"]: record for record in records if record["machine"] == records[-1]["machine"]}
    return list(found.values())


class Line:
    """One comparison: a quantity of ours and of another, turn by turn, and how many times better ours is."""

    def __init__(self, record, other, what, ours, theirs, ratios, by_cpu=None, memory=""):
        self.record, self.other, self.what = record, other, what
        self.ours, self.theirs, self.ratios = ours, theirs, ratios
        self.by_cpu, self.memory = by_cpu, memory


def lines(record):
    """All comparisons of a record."""
    members = {label: each for label, each in record["members"].items() if "error" not in each}
    kind = in_turns if "chunks" in record["members"]["jaxrl"] else as_processes
    return kind(record, members)


def in_turns(record, members):
    """Rates: units of work a second."""
    found = []
    rates = {
        label: {clock: [chunk["amount"] / max(chunk[clock], 1e-9) for chunk in member["chunks"]] for clock in RATES}
        for label, member in members.items()
    }
    floors = [label for label in rates if label.startswith("floor: ")]
    if len(floors) > 1:  # one after the other
        rates["floor: all of these"] = {
            clock: [1 / sum(1 / rate for rate in turn) for turn in zip(*(rates[f][clock] for f in floors), strict=True)]
            for clock in RATES
        }
    ours = rates.pop("jaxrl")
    memory = {label: f"{max(chunk['peak'] for chunk in member['chunks']):.0f}" for label, member in members.items()}
    for label, theirs in rates.items():
        ratios, by_cpu = ([a / b for a, b in zip(ours[clock], theirs[clock], strict=True)] for clock in ("wall", "cpu"))
        beside = f"{memory['jaxrl']}, {memory[label]}" if label in memory else ""
        found.append(Line(record, label, "a second", ours["wall"], theirs["wall"], ratios, by_cpu, beside))
    if not rates:
        found.append(Line(record, "", "a second", ours["wall"], [], []))
    return found


def as_processes(record, members):
    """Seconds from the start of a process to each of its phases, of the clock; ours that got there too."""
    found = []
    ours = members.pop("jaxrl")
    for label, theirs in members.items():
        for mode in ("cold", "warm"):
            for phase in spans(ours[mode][0]):
                pairs = [
                    [run[phase] for run in pair]
                    for pair in zip(map(spans, ours[mode]), map(spans, theirs[mode]), strict=True)
                    if all(phase in run for run in pair)
                ]
                if not pairs:
                    continue
                mine, other = ([run["wall"] for run in runs] for runs in zip(*pairs, strict=True))
                ratios = [b["wall"] / a["wall"] for a, b in pairs]
                by_cpu = [b["cpu"] / a["cpu"] for a, b in pairs]
                peaks = [max(run["peak"] for run in runs[mode]) for runs in (ours, theirs)]
                beside = ", ".join(f"{peak:.0f}" for peak in peaks)
                found.append(Line(record, label, f"{mode}: {phase}", mine, other, ratios, by_cpu, beside))
    return found


def spans(run):
    """Seconds until each phase; and from the construction of everything to the first update, most of it compilation."""
    phases = dict(run["phases"])
    if {"constructed", "first update"} <= set(phases):
        ends = phases["first update"], phases["constructed"]
        phases["compilation"] = {clock: ends[0][clock] - ends[1][clock] for clock in RATES}
    return phases


def table(records):
    """A row of Markdown for each comparison."""
    head = ["row", "beside", "", "jaxrl", "the other", "ratio", "least, greatest", "by CPU", "MB", "goal"]
    rows = [head, ["---"] * len(head)]
    for record in records:
        for line in lines(record):
            rows.append(
                [
                    record["title"],
                    line.other,
                    line.what,
                    amount(statistics.median(line.ours)),
                    amount(statistics.median(line.theirs)) if line.theirs else "",
                    f"**{statistics.median(line.ratios):.2f}**" if line.ratios else "",
                    f"{min(line.ratios):.2f}, {max(line.ratios):.2f}" if line.ratios else "",
                    f"{statistics.median(line.by_cpu):.2f}" if line.by_cpu else "",
                    line.memory,
                    record["goal"],
                ]
            )
        for label, member in record["members"].items():
            if "error" in member:
                rows.append([record["title"], label, "failed: " + member["error"].splitlines()[-1]] + [""] * 7)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def amount(number):
    """Three figures."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def drawn(line):
    """Whether a comparison is in the figure: of floors all together, of processes what comes at the end."""
    if line.other.startswith("floor: "):
        return line.other == "floor: all of these"
    return line.record["row"] == "import" or not line.what.endswith(("imported", "constructed"))


def figure(records, path):
    """Ratios of all comparisons, with their range: to the right of 1 we are faster."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    found = [line for record in records for line in lines(record) if line.ratios and drawn(line)][::-1]
    if not found:
        return
    canvas, axes = pyplot.subplots(figsize=(8, 1 + 0.22 * len(found)))
    for y, line in enumerate(found):
        colour = "0.6" if line.other.startswith("floor: ") else "C0" if line.other.startswith("jaxrl") else "C1"
        axes.plot([min(line.ratios), max(line.ratios)], [y, y], color=colour, linewidth=2)
        axes.plot([statistics.median(line.ratios)], [y], "o", color=colour, markersize=4)
    names = [f"{line.record['title']} / {line.other}" + (f" ({line.what})" * (":" in line.what)) for line in found]
    axes.set_yticks(range(len(found)), names, fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    for axis_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_formatter(ticker.FormatStrFormatter("%g"))
    axes.set_xlabel("seconds of the other over ours, for the same work: median and range of the pairs")
    axes.grid(axis="x", color="0.92", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    canvas.savefig(path, bbox_inches="tight", dpi=120)
    pyplot.close(canvas)
