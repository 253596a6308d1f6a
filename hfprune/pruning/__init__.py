"""The whole job, and its steps: score, plan, cut, repair, again and again."""
