"""The stages of SELF-ALIGN: prompts, responses, engraving, refinement."""
