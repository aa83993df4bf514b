"""Published results, run again: set-ups of reports, records of what came out, and the page that shows them."""
