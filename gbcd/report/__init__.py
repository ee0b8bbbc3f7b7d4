"""The report: one HTML file that explains a finished study, with everything it needs inside it.

    results folder -> ReportData -> sections of charts, grids and tables -> page, figures

`reading.py` fills `data.py`; `findings`, `components`, `effects`, `circuit`, `prompts`, `study` make a section or more
each, `caveats` the warnings; `charts.py` says what sections are made of and how charts look.
"""
