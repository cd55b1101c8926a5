"""Tables and figures made from finished runs: from results.json (and path.json) alone, for any method."""
