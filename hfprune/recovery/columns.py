"""The columns of training data that hold what the teacher predicts: `add_teacher_logits` writes them."""

#: `(classes,)` logits of every sample.
TEACHER_LOGITS = "teacher_logits"
#: `(tokens, k)` ids of the likeliest tokens at every place.
TOP_IDS = "teacher_top_ids"
#: `(tokens, k + 1)` log-probabilities: of these tokens, and of all others together.
TOP_LOG_PROBABILITIES = "teacher_top_log_probabilities"
#: The temperature that these log-probabilities were softened with.
TEMPERATURE = "teacher_temperature"
TEACHER_COLUMNS = (TEACHER_LOGITS, TOP_IDS, TOP_LOG_PROBABILITIES, TEMPERATURE)
