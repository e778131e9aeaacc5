import android.content.Context
import android.graphics.Bitmap
import com.example.digits.Accelerator
import com.example.digits.Category
import com.example.digits.DigitsModel
import com.example.digits.Tensor

fun best(context: Context, bitmap: Bitmap): List<Pair<String, Float>> =
    DigitsModel.loadVerified(context).use { model ->
        check(model.selfTest().passed())
        val found: List<Category> = model.classify(bitmap, 3)
        found.map { it.label to it.score }
    }

fun raw(context: Context, values: FloatArray): DoubleArray? =
    DigitsModel.load(context.assets, Accelerator.CPU).use { model ->
        val outputs = model.run(Tensor.of(values, 1, 3, 16, 16))
        outputs[model.outputs().first().name]?.values()
    }
