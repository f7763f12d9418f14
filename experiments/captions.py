"""What the report says below each picture."""

# What to look for in each picture, in the order of the page.
CAPTIONS = {
    "learning_curves.png": "Learning curves: the bound and its two parts, nats per datapoint, or what was measured in "
    "its place. A held-out curve that gets worse while the training curve gets better is overfitting.",
    "reconstructions.png": "Reconstructions: data above what the model decodes from its latents. "
    "What is blurred or lost, the latents do not carry.",
    "restorations.png": "Restorations: data, what the mask leaves of it, and the whole with the masked patches as they "
    "were predicted.",
    "denoise.png": "Noise taken away: data, what is seen of it, and what the model decodes from the code of that; or "
    "images that were given, and the same of them. Strokes that are not in the data are the model’s own.",
    "inpaint.png": "Filled in: data, what is left where some is hidden (grey), and the visible pixels as they are with "
    "the others as decoded. Look whether strokes go on across the edge.",
    "samples.png": "Samples: decoded from draws of the prior. Compare their sharpness and their variety with the data.",
    "interpolations.png": "Interpolations: paths in latent space between the decoded codes of two datapoints, framed. "
    "Every step should itself look like data.",
    "traversals.png": "Traversals: each row moves one latent dimension and holds the others still. "
    "A row without KL should not change.",
    "classes.png": "Classes: a row each, the same draw of the latent down each column. What a column shares is the "
    "style that the latent holds; what a row shares is the class.",
    "manifold.png": "Manifold: the decoder over the two-dimensional prior, in equal steps of probability. "
    "Neighbours should be alike.",
    "latents.png": "Latents: posterior means of data, coloured by label if there is one. "
    "Look for clusters, and for holes that the prior covers but the data does not.",
    "neighbours.png": "Neighbours: an example, framed, the training examples whose codes are nearest to its code, and "
    "those whose pixels are. What a code is blind to varies among its neighbours.",
    "arithmetic.png": "Arithmetic: data, framed, and what is decoded from its code moved along v, which leads from the "
    "mean code of some classes to that of others. At t = 0 it is the reconstruction.",
    "filters.png": "Filters: what each element of the code adds to a picture, grey for nothing; first those that move "
    "pictures most. Strokes and spots are parts that the data is put together from; noise is of unused elements.",
    "kl_per_dim.png": "KL of each latent dimension: the nats it carries. "
    "An inactive one says nothing about the datapoint.",
}
CAPTIONS |= {  # of experiments.gap
    "gap.png": "The gap: what the bound lacks to log p(x), because of the posterior's family and because one encoder "
    "serves all x. Training the encoder alone, as EM's E-step would, leaves the first and some of the second.",
    "proposals.png": "Two estimators of log p(x): draws from the prior rarely meet the z that explain x. "
    "Compare how many each needs.",
}
