"""The demos: small networks on images and on letters, and the tours that ask them."""
