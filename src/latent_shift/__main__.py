"""`python -m latent_shift`, which is what `accelerate launch -m latent_shift` and `torchrun -m latent_shift` start."""

from latent_shift.cli import main

if __name__ == "__main__":
    main()
