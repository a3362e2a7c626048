"""Question -> answer with verbatim citations. Free of Ray and HTTP; the file names are the steps."""
