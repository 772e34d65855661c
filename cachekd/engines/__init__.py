"""Engines: where the units of a plan run. The work itself is `cachekd.capture.unit.score_unit`."""
