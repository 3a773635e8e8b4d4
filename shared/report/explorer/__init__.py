"""The page's explorer: laws as JavaScript, measured points, and the script that draws them."""
