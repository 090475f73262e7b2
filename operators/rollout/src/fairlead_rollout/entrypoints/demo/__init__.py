"""`fairlead demo`: real models, real flights, five promotions and what became of each."""
