"""How good scores are: measures, protocols, intervals, figures, one report.

    records -> Table -> protocol (fit, predict) -> Predictions -> bootstrap -> result -> report

`protocol` says what a method and a table are, and fits and tests methods within sets, across sets and
across engines or precisions; `measures` judges the probabilities that come out; `bootstrap` puts paired
intervals on every difference; `result` is what is kept (JSON), and `figures` and `report` show it.
"""
