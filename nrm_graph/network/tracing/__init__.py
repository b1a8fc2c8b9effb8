"""From torch.export to the program: operations renamed, folded, fused and rewritten."""
