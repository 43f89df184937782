"""The vision-language model inside vLLM; every module here needs vLLM and is imported by its plugin alone."""
