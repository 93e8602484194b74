"""Who is nearest to whom: distances, scores of a ranking, features that other tools computed."""
