"""The report: one HTML file that explains a finished study, with everything it needs inside it.

    results folder -> findings (one pass over the shards) -> sections -> charts and tables -> page

A chart is a Vega-Lite specification without data, and tables of data by the setting of the page's controls. The page
draws it with the libraries that are inlined; `figures` draws the same specifications as files for a paper, and `theme`
says how both look.
"""
