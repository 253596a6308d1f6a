"""Prune a model that writes down what is spoken, and recover its word error rate.

Data are tables (csv, jsonl) with names of sound files and their texts, or data sets of the Hub with such columns. The
model has a CTC head (wav2vec2, HuBERT) or writes (Whisper).

    python scripts/run_speech_recognition.py --model_name_or_path openai/whisper-tiny.en \
        --dataset hf-internal-testing/librispeech_asr_dummy --dataset_config clean --sparsity 0.3 \
        --num_train_epochs 5 --output_dir runs/whisper

    python scripts/run_speech_recognition.py --model_name_or_path me/speech --train_file spoken.jsonl \
        --audio_column file --text_column words --sparsity 0.3 --output_dir runs/mine

Everything else is as in run_text_classification.py: one YAML file for all arguments, --resume_from_checkpoint,
--teacher_model, --early_stopping_patience, --push_to_hub. The folder `output_dir/model` holds the result.
"""

from hfprune.jobs.script import main

if __name__ == "__main__":
    main("speech_recognition", __doc__, script=__file__)
