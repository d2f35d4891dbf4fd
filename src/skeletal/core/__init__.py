"""What the project is about, in torch alone: scores, masks, the progressive loop, and what a mask leaves."""
