"""The heart of the project, in torch alone: scores, masks, the progressive loop, and what a mask leaves."""
