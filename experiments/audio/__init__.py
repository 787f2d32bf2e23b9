"""Recordings, windows, annotations and spectrograms: thin over soundfile, soxr, librosa and PyWavelets."""
