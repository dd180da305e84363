"""How good scores are: measures, protocols, intervals, figures, one report.

    records -> Table -> protocol (fit, predict) -> Predictions -> bootstrap -> summary -> result -> report

`protocol` says what a method and a table are, and fits and tests methods within sets, across sets and
across engines or precisions; `measures` judges the probabilities that come out; `bootstrap` puts paired
intervals on every difference; `summary` makes of all this the `result` that is kept (JSON), and `figures`
and `report` show it.
"""
