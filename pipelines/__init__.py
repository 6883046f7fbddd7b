"""The thought of plumbline: values, maths and the loop. Importing it never loads Ray, vLLM or DeepSpeed."""
