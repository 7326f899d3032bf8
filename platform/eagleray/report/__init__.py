"""From records to a leaderboard, a finding, pictures and the page of all methods."""
