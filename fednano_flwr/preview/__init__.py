"""`fednano data`: what the model will see of the data, shown before anything is trained."""
