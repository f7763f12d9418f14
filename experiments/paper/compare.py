"""Our curves beside the paper's: the figure, the CSV and the table of differences, in one folder."""

from collections.abc import Sequence

from experiments.paper import curves, runs


def compare(figure: str, jobs: Sequence[runs.Job]) -> None:
    """Add the curves of these jobs to `figN.csv` and draw all that it holds beside the paper's."""
    from aevb import figures
    from experiments.paper import draw

    folder = runs.out_folder()
    path = folder / f"fig{figure}.csv"
    old = curves.read(path) if path.exists() else []
    ours = curves.merge(old, [curve for job in jobs for curve in runs.curves(job)])
    curves.write(path, ours)
    paper = curves.published()
    table = curves.differences(ours, paper)
    curves.write_differences(folder / f"fig{figure}_differences", table)
    if figure == "2":
        for dataset in curves.DATASETS:
            figures.save(draw.fig2(ours, paper, dataset), folder / f"fig2_{dataset}.png")
    else:
        figures.save(draw.fig3(ours, paper), folder / "fig3.png")
    print(curves.markdown(table))
    print(f"wrote {path} and what is drawn from it")
